// What the wgmma GEMMs share: the order of output tiles, the ring's position, one k-step of mma, the way out for y.
#pragma once
#include "ptx/convert.cuh"
#include "ptx/stmatrix.cuh"
#include "ptx/wgmma.cuh"
#include "schedule.cuh"

constexpr int WARP = 32;
constexpr int WARPGROUP = 128;
constexpr int MMA_M = 64;  // rows of a wgmma
constexpr int MMA_K = 16;  // bf16 along k of a wgmma

static_assert(schedule::block_k * sizeof(bf16) == 128, "a row of a tile is one 128-byte swizzled row");

// The first row and column of an output tile. Groups of `group_m` tile rows are walked column by column, so that the
// tiles that run at the same time share rows of x and w in L2.
struct Tile {
    int row, column;
};

__device__ __forceinline__ int tiles_of(int extent, int block) { return (extent - 1) / block + 1; }

__device__ __forceinline__ Tile tile_at(int index, int m, int n, int block_m) {
    const int tiles_m = tiles_of(m, block_m), tiles_n = tiles_of(n, schedule::block_n);
    const int first = index / (schedule::group_m * tiles_n) * schedule::group_m;
    const int rows = min(schedule::group_m, tiles_m - first);
    const int inside = index - first * tiles_n;
    return {(first + inside % rows) * block_m, inside / rows * schedule::block_n};
}

// Where a walker of the ring is: the stage, and the parity of that stage's phase, which flips on each lap.
struct Position {
    int stage = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == schedule::stages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// sum[64, n] = x[64, block_k] w[n, block_k]^T, plus sum where `accumulate`. The caller fences before and commits after.
template <int registers>
__device__ __forceinline__ void multiply(float (&sum)[registers], const bf16* x, const bf16* w, bool accumulate) {
    const uint64_t a = ptx::wgmma::descriptor_k_major_128b(x), b = ptx::wgmma::descriptor_k_major_128b(w);
#pragma unroll
    for (int at = 0; at < schedule::block_k; at += MMA_K)
        ptx::wgmma::mma<bf16>(sum, ptx::wgmma::advance(a, at * sizeof(bf16)), ptx::wgmma::advance(b, at * sizeof(bf16)),
                             accumulate || at > 0);
}

// A box of y in shared memory, with the 128-byte swizzle that TMA undoes: the 16-byte chunk c of row r lies at chunk
// c ^ (r % 8), so that stmatrix meets no bank conflict.
using Box = bf16[MMA_M][schedule::block_k];
constexpr int BOX_REGISTERS = MMA_M * schedule::block_k / WARPGROUP;
constexpr int CHUNK = 8;  // bf16 in 16 bytes

// A warpgroup's accumulators of 64 columns, rounded to bf16. A warp holds 16 rows; registers 4j .. 4j + 3 are columns
// 8j .. 8j + 7 of its upper eight rows, then of its lower eight.
__device__ __forceinline__ void round_to(Box& box, const float* sum) {
    const int lane = threadIdx.x % WARP;
    const int row = threadIdx.x % WARPGROUP / WARP * 16 + lane % 16;
#pragma unroll
    for (int j = 0; j < BOX_REGISTERS / 4; j += 2) {
        const int chunk = (j + lane / 16) ^ (row % 8);
        const float* s = sum + 4 * j;
        ptx::stmatrix::x4(&box[row][chunk * CHUNK], ptx::convert::pair<bf16>(s[0], s[1]),
                          ptx::convert::pair<bf16>(s[2], s[3]), ptx::convert::pair<bf16>(s[4], s[5]),
                          ptx::convert::pair<bf16>(s[6], s[7]));
    }
}

// Dynamic shared memory from its first 1024-byte boundary on: what a tile with the 128-byte swizzle needs.
constexpr int ALIGNMENT = 1024;

template <typename Shared>
__device__ __forceinline__ Shared& aligned(uint8_t* dynamic) {
    const uint32_t past = ptx::address::shared(dynamic) % ALIGNMENT;
    return *reinterpret_cast<Shared*>(dynamic + (ALIGNMENT - past) % ALIGNMENT);
}
