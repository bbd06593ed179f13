// The order in which GEMMs walk over output tiles, the same as `tile_at` in _tiles.py.
#pragma once
#include "schedule.cuh"

__device__ __forceinline__ int tiles_of(int extent, int block) { return (extent - 1) / block + 1; }

// The first row and column of an output tile. Groups of `group_m` tile rows are walked column by column, so that the
// tiles that run at the same time share rows of x and w in L2.
struct Tile {
    int row, column;
};

__device__ __forceinline__ Tile tile_at(int index, int m, int n, int block_m) {
    const int tiles_m = tiles_of(m, block_m), tiles_n = tiles_of(n, schedule::block_n);
    const int first = index / (schedule::group_m * tiles_n) * schedule::group_m;
    const int rows = min(schedule::group_m, tiles_m - first);
    const int inside = index - first * tiles_n;
    return {(first + inside % rows) * block_m, inside / rows * schedule::block_n};
}
