// Tiles of 16-bit elements in shared memory, and a warp's products of them by mma.sync.
#pragma once
#include "lab/kernels/attention/elements.cuh"
#include "ptx/address.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/load.cuh"
#include "ptx/mma.cuh"
#include "ptx/types.cuh"
#include "schedule.cuh"

constexpr int MMA_M = 16, MMA_K = 16;
constexpr int CHUNK = 8;  // elements in 16 bytes

// Rows of 16-byte chunks, permuted so that eight rows of one chunk lie in all 32 banks.
template <int rows, int columns>
struct MmaTile {
    static constexpr int ROWS = rows, CHUNKS = columns / CHUNK;
    static_assert(CHUNKS % 8 == 0, "rows of 128 bytes");
    Vector16 chunks[rows][CHUNKS];

    __device__ __forceinline__ Vector16& at(int row, int chunk) { return chunks[row][chunk ^ row % 8]; }
    __device__ __forceinline__ const Vector16& at(int row, int chunk) const { return chunks[row][chunk ^ row % 8]; }
};

// A tile from rows that are `stride` elements apart, by all threads; zeros beyond those that are there.
template <typename Tile>
__device__ __forceinline__ void fill(Tile& tile, const Element* from, int64_t stride, int rows, int columns) {
#pragma unroll 4
    for (int i = threadIdx.x; i < Tile::ROWS * Tile::CHUNKS; i += schedule::threads) {
        const int row = i / Tile::CHUNKS, chunk = i % Tile::CHUNKS;
        const bool there = row < rows && chunk * CHUNK < columns;
        tile.at(row, chunk) = ptx::load::cached_if(from + row * stride + chunk * CHUNK, there);
    }
}

// The fragment of a of 16 rows from `row` on, 16 columns a step.
template <typename Tile>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const Tile& tile, int row, int step) {
    const int lane = threadIdx.x % WARP;
    ptx::ldmatrix::x4(a, ptx::address::shared(&tile.at(row + lane % 16, 2 * step + lane / 16)));
}

// sum[16, n] += a b^T of one step: b has a row for each of the n columns.
template <int n, typename Tile>
__device__ __forceinline__ void multiply_rows(float (&sum)[n / 8][4], const uint32_t (&a)[4], const Tile& b, int step) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int row = 0; row < n; row += 16) {
        uint32_t part[4];
        const int at = row + lane / 16 * 8 + lane % 8;
        ptx::ldmatrix::x4(part, ptx::address::shared(&b.at(at, 2 * step + lane / 8 % 2)));
        ptx::mma::m16n8k16<Element>(sum[row / 8], a, {part[0], part[1]});
        ptx::mma::m16n8k16<Element>(sum[row / 8 + 1], a, {part[2], part[3]});
    }
}

// sum[16, n] += a b of one step: b has a row for each of the 16 columns of a.
template <int n, typename Tile>
__device__ __forceinline__ void multiply_columns(float (&sum)[n / 8][4], const uint32_t (&a)[4], const Tile& b,
                                                 int step) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int column = 0; column < n; column += 16) {
        uint32_t part[4];
        const int at = step * MMA_K + lane % 16;
        ptx::ldmatrix::x4_transposed(part, ptx::address::shared(&b.at(at, column / CHUNK + lane / 16)));
        ptx::mma::m16n8k16<Element>(sum[column / 8], a, {part[0], part[1]});
        ptx::mma::m16n8k16<Element>(sum[column / 8 + 1], a, {part[2], part[3]});
    }
}
