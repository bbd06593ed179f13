// gemm_shared_tile: y[m, n] = x[m, k] @ w[n, k].T, tiles of x and w in shared memory, one output a thread.
//
// Idea: the threads of a CTA need the same rows of x and w. They fetch 32 elements of each row together, into shared
// memory, and all read them there.
// Adds to gemm_coalesced: reuse that does not lean on L1: x is fetched n / block_n times, w m / block_m times.
//
// Warp roles: all alike. At each k-step the CTA loads, waits, multiplies, waits.
//
//                        w: block_n rows x 32
//                            | | | |
//   x: block_m rows x 32  -- y y y y     a warp owns 32 neighbouring columns of one row of y:
//                         -- y y y y     its x is a broadcast, its w lie a pitch apart
//
// Bytes expected: 4 (m n k / block_n + m n k / block_m), and from shared memory 8 for each multiply-add.
#include "lab/kernels/gemm/simt_tile.cuh"

static_assert(schedule::threads == schedule::block_m * schedule::block_n, "one thread an output");
static_assert(schedule::block_n % LANES == 0, "a warp lies in one row");

struct Shared {
    float x[schedule::block_m][schedule::pitch];
    float w[schedule::block_n][schedule::pitch];  // an odd pitch: lanes read different rows from different banks
};

extern "C" __global__ void __launch_bounds__(schedule::threads)
    gemm_shared_tile(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, int m, int n,
                     int k) {
    __shared__ Shared shared;
    const Tile tile = own_tile(m, n);
    const int row = threadIdx.x / schedule::block_n, column = threadIdx.x % schedule::block_n;

    float sum = 0;
    for (int k0 = 0; k0 < k; k0 += schedule::block_k) {
        load_rows(shared.x, x, tile.row, m, k0, k);
        load_rows(shared.w, w, tile.column, n, k0, k);
        __syncthreads();
#pragma unroll
        for (int at = 0; at < schedule::block_k; ++at) sum = fmaf(shared.x[row][at], shared.w[column][at], sum);
        __syncthreads();
    }
    if (tile.row + row < m && tile.column + column < n) y[int64_t(tile.row + row) * n + tile.column + column] = sum;
}
