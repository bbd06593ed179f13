// What the wgmma GEMMs with both operands in shared memory share: the walk over tiles, the k-steps of a tile.
#pragma once
#include "lab/kernels/gemm/tma_ring.cuh"
#include "ptx/wgmma.cuh"
#include "schedule.cuh"

using Element = problem::weights;  // of x and of w

constexpr int MMA_M = 64;      // rows of a wgmma
constexpr int MMA_BYTES = 32;  // along k of a wgmma
constexpr int BLOCK_K = schedule::step_bytes / sizeof(Element);

static_assert(schedule::step_bytes == 128, "a row of a tile is one 128-byte swizzled row");

// A k-step of a tile's rows of x and of w.
struct Stage {
    Element x[schedule::block_m][BLOCK_K];
    Element w[schedule::block_n][BLOCK_K];
};

static_assert(sizeof(Stage) == schedule::stage_bytes, "what a full barrier expects");

// The tiles of one of `workers` workers, a CTA or a cluster: every workers-th of them, from its own index on.
struct Walk {
    int tiles_m, tiles_n, block_m, block_n, index, workers;

    __device__ __forceinline__ bool more() const { return index < tiles_m * tiles_n; }

    __device__ __forceinline__ bool next(Tile& tile) {
        if (!more()) return false;
        tile = tile_at(index, tiles_m, tiles_n, block_m, block_n);
        index += workers;
        return true;
    }
};

// sum[64, n] = x[64, BLOCK_K] w[n, BLOCK_K]^T, plus sum where `accumulate`. The caller fences before, commits after.
template <int registers>
__device__ __forceinline__ void multiply(float (&sum)[registers], const Element* x, const Element* w, bool accumulate) {
    const uint64_t a = ptx::wgmma::descriptor_k_major_128b(x), b = ptx::wgmma::descriptor_k_major_128b(w);
#pragma unroll
    for (int at = 0; at < schedule::step_bytes; at += MMA_BYTES)
        ptx::wgmma::mma<Element>(sum, ptx::wgmma::advance(a, at), ptx::wgmma::advance(b, at), accumulate || at > 0);
}

// Issue every k-step of `tiles` x 64 rows of a tile, from row `first` of the stages on; one group of mma stays in flight
// behind the one that is issued. `release` hands a stage's index back to whoever fills it; the last stage is returned.
template <bool transposed = false, int tiles, int registers, typename Shared, typename Release>
__device__ __forceinline__ int issue(float (&sum)[tiles][registers], Shared& shared, int first, int steps,
                                     Position& now, Release release) {
    int before = 0, step = 0;
    do {  // one step at least: the zeros of a path without any would meet the sums in flight, and wgmma be serialised
        const auto& stage = shared.ring[now.stage];
        ptx::mbarrier::wait(shared.full[now.stage], now.parity);
        ptx::wgmma::fence();
#pragma unroll
        for (int t = 0; t < tiles; ++t)
            if constexpr (transposed)
                multiply(sum[t], stage.w[first + t * MMA_M], stage.x[0], step > 0);
            else
                multiply(sum[t], stage.x[first + t * MMA_M], stage.w[0], step > 0);
        ptx::wgmma::commit_group();
        if (step > 0) {
            ptx::wgmma::wait_group<1>();
            release(before);
        }
        before = now.stage;
        now.advance();
    } while (++step < steps);
    return before;
}

// Wait for what was issued, and hand the last stage back.
template <int tiles, int registers, typename Release>
__device__ __forceinline__ void drain(float (&sum)[tiles][registers], int last, Release release) {
    ptx::wgmma::wait_group<0>();
    release(last);
#pragma unroll
    for (int t = 0; t < tiles; ++t) ptx::wgmma::hold(sum[t]);
}

// Both: the sums of a tile.
template <bool transposed = false, int tiles, int registers, typename Shared, typename Release>
__device__ __forceinline__ void accumulate(float (&sum)[tiles][registers], Shared& shared, int first, int steps,
                                           Position& now, Release release) {
    drain(sum, issue<transposed>(sum, shared, first, steps, now, release), release);
}
