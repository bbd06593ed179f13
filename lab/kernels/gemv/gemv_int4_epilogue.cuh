// The epilogue of gemv_int4: sums meet in shared memory, then in that of the cluster's CTAs, and become y.
#pragma once
#include "lab/kernels/common/silu.cuh"
#include "lab/kernels/common/warp_sum.cuh"
#include "lab/kernels/gemv/gemv_int4_stream.cuh"
#include "ptx/cluster.cuh"
#include "ptx/convert.cuh"
#include "ptx/load.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/store.cuh"

using Sum = float[schedule::rows][TOKEN_TILES][4];

constexpr int SQUARES = schedule::squares;  // elements of a row whose squares are one sum
static_assert(!problem::summed || PART % SQUARES == 0, "a CTA has all rows of a sum");

// What the parts of a norm need beside, behind x in shared memory: the sums of x's squares, where there is one token, and
// what each warp makes of each token's; what is added to this CTA's rows of y; their norm's weights.
struct Beside {
    float *squares, *of_warps;
    bf16 *residual, *norm;
    int parts;  // of a token's squares

    __device__ __forceinline__ Beside(uint8_t* at, const Work& work, int k) : parts((k + SQUARES - 1) / SQUARES) {
        squares = reinterpret_cast<float*>(at);
        of_warps = squares + (problem::rooted ? parts : 0);
        residual = reinterpret_cast<bf16*>(of_warps + work.tokens * (problem::rooted ? WARPS : 0));
        norm = residual + work.tokens * PART;
    }

    // Ask for them, in the group of copies that is closed next.
    __device__ __forceinline__ void ask(const float* of_x, const bf16* stream, const bf16* weights, const Work& work,
                                        int n) const {
        if (problem::rooted && work.tokens == 1) copy<float>(squares, of_x + int64_t(work.token) * parts, parts);
        if constexpr (problem::summed) {
            const int row = work.row + work.rank * PART, rows = max(min(work.part, n - row), 0);
#pragma unroll 1
            for (int token = 0; token < work.tokens; ++token)
                copy<bf16>(residual + token * PART, stream + int64_t(work.token + token) * n + row, rows);
            copy<bf16>(norm, weights + row, rows);
        }
    }

    // When they are there: the sums of this thread's squares, and of its warp's.
    __device__ __forceinline__ void sum(const float* of_x, const Work& work) const {
        ptx::cp_async::commit_group();  // of a warp without a step none was closed
        ptx::cp_async::wait_group<0>();
        if constexpr (problem::rooted)
#pragma unroll 1
            for (int token = 0; token < work.tokens; ++token) {
                const float* own = of_x + int64_t(work.token + token) * parts;
                float total = 0;
#pragma unroll 1
                for (int at = threadIdx.x; at < parts; at += schedule::threads)
                    total += work.tokens == 1 ? squares[at] : __uint_as_float(ptx::load::cached_4(own + at));
                total = warp_sum(total);
                if (threadIdx.x % LANES == 0) of_warps[token * WARPS + threadIdx.x / LANES] = total;
            }
    }

    // The inverse root of a token's mean square.
    __device__ __forceinline__ float root(int token, int k, float eps) const {
        float total = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) total += of_warps[token * WARPS + warp];
        return rsqrtf(total * (1.0f / k) + eps);
    }

   private:
    template <typename T>
    __device__ __forceinline__ static void copy(T* to, const T* from, int count) {
        constexpr int EACH = sizeof(float) / sizeof(T);  // of a copy
#pragma unroll 1
        for (int at = threadIdx.x * EACH; at < count; at += schedule::threads * EACH)
            ptx::cp_async::copy_4(ptx::address::shared(to + at), from + at);
    }
};

// Where y goes, and what a norm makes of it beside.
struct Results {
    bf16 *y, *total;
    float* total_squares;
    int n, k;
    float eps;
};

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
        const int half = row % TEAM_ROWS / TEAM_COLUMNS, column = row / TEAM_ROWS * TEAM_COLUMNS + row % TEAM_COLUMNS;
        const int owner = column / PART;
        ptx::store::async_cluster(
            ptx::address::shared_of_cta(&inboxes(shared)[work.rank][token][half * PART + column % PART], owner),
            team_sum(shared, token, row), ptx::address::shared_of_cta(&shared.arrived, owner));
    });
    ptx::mbarrier::wait_cluster(shared.arrived, 0);
}

// The sum over a cluster's CTAs for a token and a column of this CTA's part, in the gate's half or that which it gates.
__device__ __forceinline__ float whole_sum(Shared& shared, int token, int own, int half) {
    if constexpr (CLUSTER == 1)
        return team_sum(shared, token, own / TEAM_COLUMNS * TEAM_ROWS + half * TEAM_COLUMNS + own % TEAM_COLUMNS);
    float total = 0;
#pragma unroll
    for (int sender = 0; sender < INBOXES; ++sender) total += inboxes(shared)[sender][token][half * PART + own];
    return total;
}

// y of this CTA's part of the rows.
__device__ __forceinline__ void store(Shared& shared, const Beside& beside, const Work& work, const Results& to) {
    const int columns = to.n / HALVES;
    visit_sums<PART>(work.part, work.tokens, [&](int token, int own) {
        const int column = work.row + work.rank * PART + own;
        if (column >= columns) return;
        const int64_t at = int64_t(work.token + token) * columns + column;
        const float root = problem::rooted ? beside.root(token, to.k, to.eps) : 1;
        float value = root * whole_sum(shared, token, own, 0);
        if constexpr (problem::swiglu) value = silu(value) * (root * whole_sum(shared, token, own, 1));
        if constexpr (problem::summed) {
            bf16 rounded;
            ptx::convert::from_float(rounded, value + ptx::convert::to_float(beside.residual[token * PART + own]));
            to.total[at] = rounded;
            value = ptx::convert::to_float(rounded);
            const float squares = sum_of_lanes<SQUARES>(value * value);
            if (own % SQUARES == 0)
                to.total_squares[int64_t(work.token + token) * ((columns + SQUARES - 1) / SQUARES) + column / SQUARES] =
                    squares;
            value *= ptx::convert::to_float(beside.norm[own]);
        }
        ptx::convert::from_float(to.y[at], value);
    });
}
