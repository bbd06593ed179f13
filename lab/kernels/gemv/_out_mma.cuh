// The way out of gemv_mma: sums meet in shared memory, then in that of the cluster's CTAs, and become y.
#pragma once
#include "lab/kernels/gemv/_stream_mma.cuh"
#include "ptx/cluster.cuh"
#include "ptx/convert.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/store.cuh"

using Output = problem::output;
using Sum = float[schedule::rows][TOKEN_TILES][4];

// A warp's sums, in the place of its ring.
__device__ __forceinline__ void leave(const Sum& sum, Warp& own) {
    const int lane = threadIdx.x % LANES;
    __syncwarp();
#pragma unroll
    for (int r = 0; r < schedule::rows; ++r)
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                own.sums[j * EIGHT + lane % 4 * 2 + i % 2][r * TILE + i / 2 * (TILE / 2) + lane / 4] = sum[r][j][i];
}

__device__ __forceinline__ float4 operator+(const float4& a, const float4& b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

// The sum of a team's warps for a token and four rows of this CTA.
__device__ __forceinline__ float4 team_sum(const Shared& shared, int token, int quad) {
    constexpr int TEAM_QUADS = schedule::rows * TILE / 4;
    const Warp* team = &shared.warps[quad / TEAM_QUADS * SPLIT];
    float4 total = reinterpret_cast<const float4*>(team[0].sums[token])[quad % TEAM_QUADS];
#pragma unroll
    for (int s = 1; s < SPLIT; ++s)
        total = total + reinterpret_cast<const float4*>(team[s].sums[token])[quad % TEAM_QUADS];
    return total;
}

// Calls `visit(token, quad of the owner's part)` for what this lane has of all `owners` parts; `part` says of which.
template <typename Visit>
__device__ __forceinline__ void visit_quads(int owners, int tokens, const Visit& visit) {
    const int lane = threadIdx.x % LANES, each = (tokens + AT_ONCE - 1) / AT_ONCE * WIDTHS;
    for (int item = threadIdx.x / LANES; item < owners * each; item += WARPS) {
        const int token = item % each / WIDTHS * AT_ONCE + lane / WIDTH;
        const int quad = item % WIDTHS * WIDTH + lane % WIDTH;
        if (lane < AT_ONCE * WIDTH && token < tokens && quad < PART) visit(item / each, token, quad);
    }
}

// Send the sums of each CTA's part of the rows to it, and wait for what all send to this one.
__device__ __forceinline__ void exchange(Shared& shared, const Work& work) {
    ptx::cluster::wait();  // every CTA of the cluster has started
    visit_quads(CLUSTER, work.tokens, [&](int distance, int token, int part_quad) {
        const int owner = (work.rank + 1 + distance) % CLUSTER, quad = owner * PART + part_quad;
        if (quad >= QUADS) return;
        const float4 total = team_sum(shared, token, quad);
        const float four[4] = {total.x, total.y, total.z, total.w};
        ptx::store::async_cluster(
            ptx::address::shared_of_cta(&inboxes(shared)[work.rank].sums[token][part_quad], owner), four,
            ptx::address::shared_of_cta(&shared.arrived, owner));
    });
    ptx::mbarrier::wait_cluster(shared.arrived, 0);
}

struct alignas(8) Four {
    uint32_t words[2];
};

// y of this CTA's part of the rows.
__device__ __forceinline__ void store(Shared& shared, const void* w_scale, Output* y, const Work& work, int n) {
    const auto* of_rows = static_cast<const float*>(w_scale);
    float scale = 1;
    if constexpr (problem::scaled && !problem::row_scales) scale = of_rows[0];
    visit_quads(1, work.tokens, [&](int, int token, int part_quad) {
        const int quad = work.rank * PART + part_quad, row = work.row + quad * 4;
        if (quad >= QUADS || row >= n) return;
        float4 total;
        if constexpr (CLUSTER == 1) {
            total = team_sum(shared, token, quad);
        } else {
            total = inboxes(shared)[0].sums[token][part_quad];
#pragma unroll
            for (int sender = 1; sender < CLUSTER; ++sender)
                total = total + inboxes(shared)[sender].sums[token][part_quad];
        }
        float4 scales = {scale, scale, scale, scale};
        if constexpr (problem::row_scales) scales = *reinterpret_cast<const float4*>(of_rows + row);
        const Four rounded = {ptx::convert::pair<Output>(total.x * scales.x, total.y * scales.y),
                              ptx::convert::pair<Output>(total.z * scales.z, total.w * scales.w)};
        *reinterpret_cast<Four*>(y + int64_t(work.token + token) * n + row) = rounded;
    });
}
