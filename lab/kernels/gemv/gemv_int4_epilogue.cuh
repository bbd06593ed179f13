// The epilogue of gemv_int4: sums meet in shared memory, then in that of the cluster's CTAs, and become y.
#pragma once
#include "lab/kernels/gemv/gemv_int4_stream.cuh"
#include "ptx/cluster.cuh"
#include "ptx/convert.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/store.cuh"

using Sum = float[schedule::rows][TOKEN_TILES][4];

// A warp's sums to shared memory, in the place of its ring.
__device__ __forceinline__ void stage_sums(const Sum& sum, Warp& own) {
    const int lane = threadIdx.x % LANES;
    __syncwarp();
#pragma unroll
    for (int r = 0; r < schedule::rows; ++r)
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                own.sums[j * MMA_N + lane % 4 * 2 + i % 2][r * MMA_M + i / 2 * MMA_N + lane / 4] = sum[r][j][i];
}

// The sum of a team's warps for a token and a row of this CTA.
__device__ __forceinline__ float team_sum(const Shared& shared, int token, int row) {
    const Warp* team = &shared.warps[row / TEAM_ROWS * SPLIT];
    float total = 0;
#pragma unroll
    for (int s = 0; s < SPLIT; ++s) total += team[s].sums[token][row % TEAM_ROWS];
    return total;
}

// Calls `visit(token, row)` for `rows` of at most `ROWS` rows and the tokens, neighbouring lanes for neighbouring rows.
template <int ROWS, typename Visit>
__device__ __forceinline__ void visit_sums(int rows, int tokens, const Visit& visit) {
    constexpr int WIDTH = ROWS < LANES ? ROWS : LANES, AT_ONCE = LANES / WIDTH, WIDTHS = (ROWS + WIDTH - 1) / WIDTH;
    const int lane = threadIdx.x % LANES, requests = (tokens + AT_ONCE - 1) / AT_ONCE * WIDTHS;
#pragma unroll 1
    for (int request = threadIdx.x / LANES; request < requests; request += WARPS) {
        const int token = request / WIDTHS * AT_ONCE + lane / WIDTH, row = request % WIDTHS * WIDTH + lane % WIDTH;
        if (lane < AT_ONCE * WIDTH && token < tokens && row < rows) visit(token, row);
    }
}

// Send the sums of each CTA's part of the rows to it, and wait for what all send to this one.
__device__ __forceinline__ void exchange(Shared& shared, const Work& work) {
    ptx::cluster::wait();  // every CTA of the cluster has started
    visit_sums<schedule::block_n>(schedule::block_n, work.tokens, [&](int token, int row) {
        const int owner = row / PART;
        ptx::store::async_cluster(
            ptx::address::shared_of_cta(&inboxes(shared)[work.rank][token][row % PART], owner),
            team_sum(shared, token, row), ptx::address::shared_of_cta(&shared.arrived, owner));
    });
    ptx::mbarrier::wait_cluster(shared.arrived, 0);
}

// y of this CTA's part of the rows.
__device__ __forceinline__ void store(Shared& shared, bf16* y, const Work& work, int n) {
    visit_sums<PART>(work.part, work.tokens, [&](int token, int part_row) {
        const int row = work.row + work.rank * PART + part_row;
        if (row >= n) return;
        float total = 0;
        if constexpr (CLUSTER == 1) {
            total = team_sum(shared, token, part_row);
        } else {
#pragma unroll
            for (int sender = 0; sender < CLUSTER; ++sender) total += inboxes(shared)[sender][token][part_row];
        }
        ptx::convert::from_float(y[int64_t(work.token + token) * n + row], total);
    });
}
