// gemm_realigned: y[m, n] = x[m, k] @ w[n, k].T for any k and n: x, or x and w, are copied to rows of whole lines.
//
// Idea: TMA takes twice as long to bring 128 bytes that lie in two lines, and rows of no whole 16-byte chunks it does not
// take at all: a row of an odd number of bf16 begins at any even byte. So one launch copies x into rows of whole 128-byte
// lines, w too where it must, gemm_cluster multiplies those, and where rows of y are no whole chunks a last launch
// copies them from rows that are. A copy costs its bytes twice; each row of x is multiplied n times, so this is little.
// Clusters then ask for w, if it is as it was, once for all of their CTAs.
// Adds to gemm_naive: the tensor cores, whatever the shape.
//
//   gemm_realigned         x, w -> rows of whole lines, zeros behind
//   gemm_cluster           their product: y, or its rows in whole lines
//   gemm_realigned_store   y
//
// A warp copies `unroll` x 32 neighbouring elements of a row, all under way before the first is stored.
//
// Bytes expected past L1: gemm_cluster's, and twice those of what is copied.
#include "schedule.cuh"

using Element = problem::weights;  // of x, w and y

constexpr int WARP = 32;
constexpr int STRETCH = WARP * schedule::unroll;  // elements of a row that a warp copies at once

template <typename T>
__device__ __forceinline__ void copy_stretch(const T* from, T* to, int columns) {
    T values[schedule::unroll];
#pragma unroll
    for (int u = 0; u < schedule::unroll; ++u) {
        const int column = u * WARP + threadIdx.x % WARP;
        if (column < columns) values[u] = from[column];
    }
    __syncwarp();  // ptxas would sink each load to its store; it moves none across a warp barrier
#pragma unroll
    for (int u = 0; u < schedule::unroll; ++u) {
        const int column = u * WARP + threadIdx.x % WARP;
        if (column < columns) to[column] = values[u];
    }
}

// Calls `copy` with the row and the first column of each stretch of this warp.
template <typename Copy>
__device__ __forceinline__ void each_stretch(int rows, int columns, Copy copy) {
    const int across = (columns - 1) / STRETCH + 1, warps = gridDim.x * (schedule::copy_threads / WARP);
    const int64_t stretches = int64_t(rows) * across;
    for (int64_t at = blockIdx.x * (schedule::copy_threads / WARP) + threadIdx.x / WARP; at < stretches; at += warps)
        copy(int(at / across), int(at % across) * STRETCH);
}

// All `m` rows of x and the first `w_rows` of w: none or all.
extern "C" __global__ void __launch_bounds__(schedule::copy_threads)
    gemm_realigned(const Element* __restrict__ x, const Element* __restrict__ w, Element* __restrict__ x_lines,
                   Element* __restrict__ w_lines, int m, int w_rows, int k, int pitch) {
    each_stretch(m + w_rows, k, [=](int row, int column) {
        const bool of_x = row < m;
        const Element* from = of_x ? x + int64_t(row) * k : w + int64_t(row - m) * k;
        Element* to = of_x ? x_lines + int64_t(row) * pitch : w_lines + int64_t(row - m) * pitch;
        copy_stretch(from + column, to + column, k - column);
    });
}

extern "C" __global__ void __launch_bounds__(schedule::copy_threads)
    gemm_realigned_store(const problem::output* __restrict__ y_lines, problem::output* __restrict__ y, int m, int n,
                         int pitch) {
    each_stretch(m, n, [=](int row, int column) {
        copy_stretch(y_lines + int64_t(row) * pitch + column, y + int64_t(row) * n + column, n - column);
    });
}
