// What the fp32 GEMMs with a patch of outputs a thread share. The patch's rows lie spread_m apart, its columns spread_n.
#pragma once
#include "lab/kernels/gemm/simt_tile.cuh"

static_assert(schedule::threads * schedule::thread_m * schedule::thread_n == schedule::block_m * schedule::block_n,
              "a patch a thread");

using Patch = float[schedule::thread_m][schedule::thread_n];

// 16 bytes of a tile's row: four k.
__device__ __forceinline__ float4 vector_at(const float* tile, int row) {
    return *reinterpret_cast<const float4*>(tile + row * schedule::pitch);
}

// sums += x w^T over four k; x and w point to the first of them in the patch's first row.
__device__ __forceinline__ void multiply_vectors(Patch& sums, const float* x, const float* w) {
    float4 b[schedule::thread_n];
#pragma unroll
    for (int j = 0; j < schedule::thread_n; ++j) b[j] = vector_at(w, j * schedule::spread_n);
#pragma unroll
    for (int i = 0; i < schedule::thread_m; ++i) {
        const float4 a = vector_at(x, i * schedule::spread_m);
#pragma unroll
        for (int j = 0; j < schedule::thread_n; ++j) sums[i][j] = fmaf(a.x, b[j].x, sums[i][j]);
#pragma unroll
        for (int j = 0; j < schedule::thread_n; ++j) sums[i][j] = fmaf(a.y, b[j].y, sums[i][j]);
#pragma unroll
        for (int j = 0; j < schedule::thread_n; ++j) sums[i][j] = fmaf(a.z, b[j].z, sums[i][j]);
#pragma unroll
        for (int j = 0; j < schedule::thread_n; ++j) sums[i][j] = fmaf(a.w, b[j].w, sums[i][j]);
    }
}

// The patch whose first element is (row, column) of y, clipped.
__device__ __forceinline__ void store_patch(float* y, const Patch& sums, int row, int column, int m, int n) {
#pragma unroll
    for (int i = 0; i < schedule::thread_m; ++i)
#pragma unroll
        for (int j = 0; j < schedule::thread_n; ++j) {
            const int r = row + i * schedule::spread_m, c = column + j * schedule::spread_n;
            if (r < m && c < n) y[int64_t(r) * n + c] = sums[i][j];
        }
}
