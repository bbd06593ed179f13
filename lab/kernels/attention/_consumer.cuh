// A warpgroup that multiplies: 64 rows of a tile of queries, the weighted sum of values in registers.
#pragma once
#include "lab/kernels/attention/_softmax.cuh"
#include "lab/kernels/attention/_stream.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/wgmma.cuh"

// What a thread has; a producer that does the work of a cluster's first needs more.
constexpr int CONSUMER_REGISTERS = (CONSUMERS == 2 ? 232 : 160) - (schedule::cluster > 1 ? 8 : 0);
constexpr int PRODUCER_REGISTERS = schedule::cluster > 1 ? 56 : CONSUMERS == 2 ? 40 : 32;
constexpr int MMA_K = 16;                                  // of a wgmma
constexpr int MMA_BYTES = MMA_K * sizeof(Element);
constexpr int STEPS = schedule::block_n / MMA_K;           // of the weights along a block's keys

using Scores = float[schedule::block_n / 2];
using Values = float[problem::head_dim / 2];
using Weights = uint32_t[STEPS][4];
using Queries = uint32_t[problem::head_dim / MMA_K][4];

// scores = q k^T of 64 rows of q, a block of k. The caller fences before and commits after, here and below.
__device__ __forceinline__ void multiply_keys(Scores& scores, const Tile<schedule::block_m>& q, int row,
                                              const Tile<schedule::block_n>& k) {
#pragma unroll
    for (int box = 0; box < BOXES; ++box) {
        const uint64_t a = ptx::wgmma::descriptor_k_major_128b(q[box][row]);
        const uint64_t b = ptx::wgmma::descriptor_k_major_128b(k[box]);
#pragma unroll
        for (int at = 0; at < BOX_COLUMNS * int(sizeof(Element)); at += MMA_BYTES)
            ptx::wgmma::mma<Element>(scores, ptx::wgmma::advance(a, at), ptx::wgmma::advance(b, at), box + at > 0);
    }
}

// 16 rows of q from row `row` on as the fragments of a, by a warp.
__device__ __forceinline__ void load_queries(Queries& a, const Tile<schedule::block_m>& q, int row) {
    const int lane = threadIdx.x % WARP;
    row += lane % 16;
#pragma unroll
    for (int step = 0; step < problem::head_dim / MMA_K; ++step) {
        const int chunk = 2 * step + lane / 16, swizzled = (chunk ^ row) % 8;
        ptx::ldmatrix::x4(a[step], ptx::address::shared(&q[chunk / 8][row][swizzled * 8]));
    }
}

// The same with q in registers.
template <int n>
__device__ __forceinline__ void multiply_keys(float (&scores)[n], const Queries& a, const Tile<schedule::block_n>& k) {
#pragma unroll
    for (int step = 0; step < problem::head_dim / MMA_K; ++step) {
        const uint64_t b = ptx::wgmma::descriptor_k_major_128b(k[step / 4]);
        ptx::wgmma::mma<Element>(scores, a[step], ptx::wgmma::advance(b, step % 4 * MMA_BYTES), step > 0);
    }
}

// y = weights v, plus y where `accumulate`.
__device__ __forceinline__ void multiply_values(Values& y, const Weights& weights, const Tile<schedule::block_n>& v,
                                                bool accumulate) {
    const uint64_t b = ptx::wgmma::descriptor_n_major_128b(v, sizeof(v[0]));
#pragma unroll
    for (int step = 0; step < STEPS; ++step)
        ptx::wgmma::mma_n_major<Element>(y, weights[step], ptx::wgmma::advance(b, step * int(sizeof(v[0][0])) * MMA_K),
                                         accumulate || step > 0);
}

// One of each warp's lanes arrives: the warp needs what the barrier guards no more.
__device__ __forceinline__ void release(uint64_t& empty) {
    if (threadIdx.x % WARP == 0) ptx::mbarrier::arrive(empty);
}
