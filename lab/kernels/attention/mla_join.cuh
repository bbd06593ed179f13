// Partial results of a segment that several workers share, added up by whoever leaves one last.
#pragma once
#include "lab/kernels/attention/mla_rows.cuh"
#include "ptx/atom.cuh"
#include "ptx/barrier.cuh"
#include "ptx/convert.cuh"

constexpr int VALUES_BARRIER = 2;  // named barrier of the warpgroups that add up values
constexpr int VALUES_WARPS = VALUES_WARPGROUPS * WARPGROUP / WARP;

// A row's partial results: `count` of them, the first in row `first`, the others two slots apart from `second` on.
struct Partials {
    int64_t first, second;
    int count;

    __device__ __forceinline__ int64_t at(int partial) const {
        return partial == 0 ? first : second + int64_t(partial - 1) * 2 * ROWS;
    }
};

// Row `row` of y, by a warp.
__device__ __forceinline__ void join_row(const Results& results, const Partials& partials, int64_t row) {
    constexpr int VECTORS = problem::latent / 4 / WARP;  // of four columns, a lane's
    constexpr int AHEAD = 2;  // partial results, which every row has, that are on their way while weights are found
    const int lane = threadIdx.x % WARP;
    const auto from = [&](int partial) {
        return reinterpret_cast<const float4*>(results.partial + partials.at(partial) * problem::latent) + lane;
    };
    float4 ahead[AHEAD][VECTORS];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i)
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) ahead[i][v] = from(i)[v * WARP];
    float largest = -infinity();
    for (int i = lane; i < partials.count; i += WARP) largest = fmaxf(largest, results.partial_lse[partials.at(i)]);
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, offset));
    const float base = largest == -infinity() ? 0 : largest;
    float sum = 0, total[VECTORS][4] = {};
    const auto add = [&](const float4& four, int v, float weight) {
        total[v][0] = fmaf(four.x, weight, total[v][0]), total[v][1] = fmaf(four.y, weight, total[v][1]);
        total[v][2] = fmaf(four.z, weight, total[v][2]), total[v][3] = fmaf(four.w, weight, total[v][3]);
    };
    for (int some = 0; some < partials.count; some += WARP) {
        const int count = min(partials.count - some, WARP);
        const float own =
            lane < count ? ptx::ex2::approx((results.partial_lse[partials.at(some + lane)] - base) * LOG2_E) : 0;
        sum += own;
        if (some == 0)
#pragma unroll
            for (int i = 0; i < AHEAD; ++i)
#pragma unroll
                for (int v = 0; v < VECTORS; ++v) add(ahead[i][v], v, __shfl_sync(FULL, own, i));
#pragma unroll 4
        for (int i = some == 0 ? AHEAD : 0; i < count; ++i) {
            const float weight = __shfl_sync(FULL, own, i);
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) add(from(some + i)[v * WARP], v, weight);
        }
    }
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) sum += __shfl_xor_sync(FULL, sum, offset);
    const float inverse = sum > 0 ? 1 / sum : 0;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v)
        reinterpret_cast<Vector<8>*>(results.y + row * problem::latent)[v * WARP + lane] = {
            {ptx::convert::pair<Element>(total[v][0] * inverse, total[v][1] * inverse),
             ptx::convert::pair<Element>(total[v][2] * inverse, total[v][3] * inverse)}};
    if (problem::lse && lane == 0) results.lse[row] = sum > 0 ? base + __logf(sum) : -infinity();
}

// This CTA's rows of a part that others share, once its partial result is stored; all warps of values do this together.
__device__ __forceinline__ void join(Shared& shared, const Results& results, const Part& part) {
    const int warp = uniform(threadIdx.x / WARP) - WARPGROUP / WARP;
    const int live = min(part.rows() - results.rank * BLOCK_M, BLOCK_M), sharers = part.sharers;
    const int64_t row = part.row + results.rank * BLOCK_M, first = results.partial_row(part.first_slot, 0);
    const int64_t second = results.partial_row(part.first_slot / 2 * 2 + 2, 0);
    ptx::barrier::sync<VALUES_WARPGROUPS * WARPGROUP>(VALUES_BARRIER);
    if (threadIdx.x == WARPGROUP) {
        const int tile = part.index * results.max_tiles + part.first / ROWS;
        uint32_t* arrivals = results.arrivals + tile * schedule::cluster + results.rank;
        shared.last = ptx::atom::count(arrivals, sharers - 1) == sharers - 1;
    }
    ptx::barrier::sync<VALUES_WARPGROUPS * WARPGROUP>(VALUES_BARRIER);
    if (!shared.last) return;
    for (int own = warp; own < live; own += VALUES_WARPS)
        join_row(results, {first + own, second + own, sharers}, row + own);
}
