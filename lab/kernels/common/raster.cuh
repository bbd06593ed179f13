// The order in which CTAs or clusters walk over output tiles, the same as `tile_at` in raster.py.
#pragma once
#include "schedule.cuh"

__device__ __forceinline__ int tiles_of(int extent, int block) { return (extent - 1) / block + 1; }

// An output tile: its first row of x and y, and its first column of y, which is also its first row of w.
struct Tile {
    int row, column;
};

// Groups of `group_m` rows of tiles are walked column by column, so that the tiles that run at the same time share rows
// of x and w in L2.
__device__ __forceinline__ Tile tile_at(int index, int tiles_m, int tiles_n, int block_m, int block_n) {
    const int first = index / (schedule::group_m * tiles_n) * schedule::group_m;
    const int rows = min(schedule::group_m, tiles_m - first);
    const int inside = index - first * tiles_n;
    return {(first + inside % rows) * block_m, inside / rows * block_n};
}
