// gemm_register_tile_2d: y[m, n] = x[m, k] @ w[n, k].T, tiles in shared memory, a patch of outputs a thread.
//
// Idea: an outer product. At each k a thread reads thread_m elements of x and thread_n of w and makes thread_m x thread_n
// multiply-adds of them.
// Adds to gemm_register_tile_1d: reuse in both directions: 16 shared loads for 64 multiply-adds at 8 x 8, not 72.
//
// Warp roles: all alike. The rows and columns of a thread's patch lie `spread` apart, so that neighbouring lanes have
// neighbouring rows of w (different banks) and neighbouring columns of y (one request).
//
//   thread (r, c)         w[c] w[c + spread_n] ...
//          x[r]            y    y
//          x[r + spread_m] y    y
//          ...
//
// Bytes expected: as gemm_shared_tile, with tiles of 128 x 128 a quarter of what 32 x 32 take.
#include "lab/kernels/gemm/simt_thread_tile.cuh"

struct Shared {
    float x[schedule::block_m][schedule::pitch];
    float w[schedule::block_n][schedule::pitch];
};

// One k-step: at each k an outer product of a column of x and a column of w.
__device__ __forceinline__ void multiply(Patch& sums, const Shared& shared, int row, int column) {
#pragma unroll
    for (int at = 0; at < schedule::block_k; ++at) {
        float a[schedule::thread_m], b[schedule::thread_n];
#pragma unroll
        for (int i = 0; i < schedule::thread_m; ++i) a[i] = shared.x[row + i * schedule::spread_m][at];
#pragma unroll
        for (int j = 0; j < schedule::thread_n; ++j) b[j] = shared.w[column + j * schedule::spread_n][at];
#pragma unroll
        for (int i = 0; i < schedule::thread_m; ++i)
#pragma unroll
            for (int j = 0; j < schedule::thread_n; ++j) sums[i][j] = fmaf(a[i], b[j], sums[i][j]);
    }
}

extern "C" __global__ void __launch_bounds__(schedule::threads)
    gemm_register_tile_2d(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, int m, int n,
                          int k) {
    __shared__ Shared shared;
    const Tile tile = own_tile(m, n);
    const int row = threadIdx.x / schedule::spread_n, column = threadIdx.x % schedule::spread_n;

    Patch sums = {};
    for (int k0 = 0; k0 < k; k0 += schedule::block_k) {
        load_rows(shared.x, x, tile.row, m, k0, k);
        load_rows(shared.w, w, tile.column, n, k0, k);
        __syncthreads();
        multiply(sums, shared, row, column);
        __syncthreads();
    }
    store_patch(y, sums, tile.row + row, tile.column + column, m, n);
}
