// What the fp32 GEMMs on CUDA cores share: lanes, and the way of a k-step into shared memory.
#pragma once
#include "lab/kernels/common/raster.cuh"

constexpr int LANES = 32;
constexpr int VECTOR = 4;  // floats in 16 bytes

// The output tile of this CTA.
__device__ __forceinline__ Tile own_tile(int m, int n) {
    return tile_at(blockIdx.x, tiles_of(m, schedule::block_m), tiles_of(n, schedule::block_n), schedule::block_m,
                   schedule::block_n);
}

// `height` rows of a [rows, k] matrix, from `row` and element k0 on, zeros beyond it. A warp takes a row at a time, its
// lanes side by side along k: one coalesced request of 128 bytes.
template <int height, int pitch>
__device__ __forceinline__ void load_rows(float (&tile)[height][pitch], const float* from, int row, int rows, int k0,
                                          int k) {
    static_assert(schedule::block_k == LANES, "a lane for each element of a row");
    constexpr int warps = schedule::threads / LANES;
    static_assert(height % warps == 0, "every warp takes as many rows");
    const int lane = threadIdx.x % LANES;
#pragma unroll
    for (int first = 0; first < height; first += warps) {
        const int r = first + threadIdx.x / LANES;
        const bool inside = row + r < rows && k0 + lane < k;
        tile[r][lane] = inside ? from[int64_t(row + r) * k + k0 + lane] : 0.0f;
    }
}
