// gemm_vectorized: y[m, n] = x[m, k] @ w[n, k].T, a patch of outputs a thread, every load 16 bytes wide.
//
// Idea: one instruction that moves 16 bytes takes the issue slot of one that moves 4. Rows are contiguous along k, in
// global memory and here, so that a vector holds four k of one row and nothing has to be transposed.
// Adds to gemm_register_tile_2d: 16 shared loads for 256 multiply-adds at 8 x 8, not for 64.
//
// Warp roles: all alike.
//
//   global   8 lanes take the 128 bytes of a row's k-step, a warp four rows
//   shared   row r starts at bank 4 r (a pitch of 36 floats), so that eight lanes read eight rows without conflict
//
// Bytes expected: as gemm_register_tile_2d.
#include "lab/kernels/gemm/simt_thread_tile.cuh"
#include "ptx/load.cuh"

constexpr int ROW_VECTORS = schedule::block_k / VECTOR;  // lanes that share a row

static_assert(schedule::pitch % VECTOR == 0, "every row of a tile is aligned for vectors");

struct Shared {
    alignas(16) float x[schedule::block_m][schedule::pitch];
    alignas(16) float w[schedule::block_n][schedule::pitch];
};

// As load_rows, with 16 bytes a lane.
template <int height, int pitch>
__device__ __forceinline__ void load_vectors(float (&tile)[height][pitch], const float* from, int row, int rows, int k0,
                                             int k) {
    constexpr int together = schedule::threads / ROW_VECTORS;
    static_assert(height % together == 0, "every thread takes as many vectors");
    const int at = threadIdx.x % ROW_VECTORS * VECTOR;
#pragma unroll
    for (int first = 0; first < height; first += together) {
        const int r = first + threadIdx.x / ROW_VECTORS;
        const bool inside = row + r < rows && k0 + at < k;
        const float* address = from + int64_t(row + r) * k + k0 + at;
        *reinterpret_cast<Vector16*>(&tile[r][at]) = ptx::load::cached_if(address, inside);
    }
}

extern "C" __global__ void __launch_bounds__(schedule::threads)
    gemm_vectorized(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, int m, int n,
                    int k) {
    __shared__ Shared shared;
    const Tile tile = own_tile(m, n);
    const int row = threadIdx.x / schedule::spread_n, column = threadIdx.x % schedule::spread_n;

    Patch sums = {};
    for (int k0 = 0; k0 < k; k0 += schedule::block_k) {
        load_vectors(shared.x, x, tile.row, m, k0, k);
        load_vectors(shared.w, w, tile.column, n, k0, k);
        __syncthreads();
#pragma unroll 2
        for (int at = 0; at < schedule::block_k; at += VECTOR)
            multiply_vectors(sums, &shared.x[row][at], &shared.w[column][at]);
        __syncthreads();
    }
    store_patch(y, sums, tile.row + row, tile.column + column, m, n);
}
