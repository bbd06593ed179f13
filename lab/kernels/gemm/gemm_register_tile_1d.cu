// gemm_register_tile_1d: y[m, n] = x[m, k] @ w[n, k].T, tiles in shared memory, a column of outputs a thread.
//
// Idea: an element of w that a thread has read from shared memory serves all the outputs of its column.
// Adds to gemm_shared_tile: reuse in registers: (thread_m + 1) / thread_m shared loads for each multiply-add, not 2, and
// tiles so large that global memory is asked for less.
//
// Warp roles: all alike. A warp owns 32 neighbouring columns of thread_m rows that lie `spread` apart.
//
//   thread (r, c)     w[c]
//          x[r]          y      one w in a register,
//          x[r + spread] y      thread_m broadcasts of x,
//          ...           y      thread_m sums
//
// Bytes expected: as gemm_shared_tile.
#include "lab/kernels/gemm/simt_tile.cuh"

constexpr int SPREAD = schedule::block_m / schedule::thread_m;  // rows between two outputs of a thread

static_assert(schedule::threads == SPREAD * schedule::block_n, "thread_m outputs a thread");
static_assert(schedule::block_n % LANES == 0, "a warp's threads share their rows");

struct Shared {
    float x[schedule::block_m][schedule::pitch];
    float w[schedule::block_n][schedule::pitch];
};

__device__ __forceinline__ void multiply(float (&sums)[schedule::thread_m], const Shared& shared, int row, int column) {
#pragma unroll
    for (int at = 0; at < schedule::block_k; ++at) {
        const float b = shared.w[column][at];
#pragma unroll
        for (int i = 0; i < schedule::thread_m; ++i) sums[i] = fmaf(shared.x[row + i * SPREAD][at], b, sums[i]);
    }
}

extern "C" __global__ void __launch_bounds__(schedule::threads)
    gemm_register_tile_1d(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, int m, int n,
                          int k) {
    __shared__ Shared shared;
    const Tile tile = own_tile(m, n);
    const int row = threadIdx.x / schedule::block_n, column = threadIdx.x % schedule::block_n;

    float sums[schedule::thread_m] = {};
    for (int k0 = 0; k0 < k; k0 += schedule::block_k) {
        load_rows(shared.x, x, tile.row, m, k0, k);
        load_rows(shared.w, w, tile.column, n, k0, k);
        __syncthreads();
        multiply(sums, shared, row, column);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < schedule::thread_m; ++i) {
        const int r = tile.row + row + i * SPREAD, c = tile.column + column;
        if (r < m && c < n) y[int64_t(r) * n + c] = sums[i];
    }
}
