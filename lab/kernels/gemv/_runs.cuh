// Runs: what a warp multiplies of 16 rows of w along k at once, 1 KB, as mma fragments; and the fragments of x for it.
// Lane l is number t = l % 4 of its group. Within a sum the order of k is free: of fp8 a lane takes the four neighbours
// that ldmatrix gives it as the columns 2t, 2t + 1, 2t + 8 and 2t + 9 of a step, and reads x there.
#pragma once
#include "lab/kernels/_dequantise.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"
#include "schedule.cuh"

using Element = problem::activations;  // of x, and what the tensor cores multiply
using Weight = problem::weights;

constexpr int LANES = 32;
constexpr int TILE = 16;   // rows of w in a run, as in an mma
constexpr int DEPTH = 16;  // of an mma along k
constexpr int EIGHT = 8;   // tokens of an mma
constexpr int TOKEN_TILES = schedule::block_m / EIGHT;
constexpr int VECTOR = sizeof(Vector16);
constexpr int VECTORS = 2;                // of 16 bytes that a lane holds of a run
constexpr int REQUEST = LANES * VECTOR;   // bytes that a warp copies at once
constexpr int RUN = VECTORS * REQUEST;    // bytes
constexpr bool GROUPED = problem::group > 0;

constexpr int ROW_RUN = RUN / TILE;                                   // bytes of a row of w in a run
constexpr int COLUMNS = GROUPED ? 128 : ROW_RUN / sizeof(Weight);     // of w in a run
constexpr int GROUP = GROUPED ? problem::group : COLUMNS;             // columns of w that share scale and offset
constexpr int GROUPS = COLUMNS / GROUP;                               // of a run
constexpr bool WIDE = sizeof(Element) == sizeof(Weight);    // ldmatrix brings whole fragments, of w and so of x
constexpr int X_PAD = GROUPED || WIDE ? 16 : 32;            // bytes between rows of x, modulo 128, for its banks

// Fragments of x come for as many mma steps as a vector of int4 has, or as a run of row-major weights has.
constexpr int STEPS = (GROUPED ? COLUMNS / VECTORS : COLUMNS) / DEPTH;

// `constant`, in a register throughout: the compiler would bring what it knows to be one to a register at each use, but
// does not know that addresses in shared memory have less than 32 bits.
__device__ __forceinline__ uint32_t held(uint32_t constant, uint32_t shared_address) {
    return constant | shared_address >> 31;
}

// The A fragment of step `s` of four words that this lane holds. Packed int4: of a tile, q + INT4_BIAS; `mask` is
// INT4_SIGNIFICANDS. Row-major: of 32 bytes of each row, as ldmatrix brings them; fp8 for two steps.
__device__ __forceinline__ void fragment(uint32_t (&a)[4], const uint32_t (&words)[4], int s, uint32_t mask = 0) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (GROUPED)
            a[i] = biased_bf16_of_int4(words[s], i, mask);
        else if constexpr (WIDE)
            a[i] = words[i];
        else
            a[i] = bf16_of_fp8(words[s * 2 + i % 2], i / 2 * 2);
    }
}

// Where this lane reads x: of each eight tokens, in shared memory. Tokens beyond the last are the last one again.
struct TokenRows {
    const uint8_t* at[TOKEN_TILES];

    // `x` is the first of the columns, `pitch` the bytes from token to token.
    __device__ __forceinline__ TokenRows(const uint8_t* x, int pitch, int tokens) {
        const int lane = threadIdx.x % LANES;
        constexpr bool MATRICES = GROUPED || WIDE;
        const int column = MATRICES ? lane / EIGHT * VECTOR : lane % 4 * 8;
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j)
            at[j] = x + min(j * EIGHT + (MATRICES ? lane % EIGHT : lane / 4), tokens - 1) * pitch + column;
    }

    __device__ __forceinline__ void advance(int columns) {
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j) at[j] += columns * sizeof(Element);
    }
};

// The B fragments of some steps: of eight tokens each, the columns that the A fragments have.
struct Tokens {
    uint32_t b[STEPS][TOKEN_TILES][2];

    __device__ __forceinline__ Tokens(const TokenRows& rows, int column) {
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j) {
            const uint8_t* at = rows.at[j] + column * sizeof(Element);
#pragma unroll
            for (int s = 0; s < STEPS; s += 2) {
                uint32_t four[4];
                if constexpr (GROUPED || WIDE) {
                    ptx::ldmatrix::x4(four, ptx::address::shared(at + s * DEPTH * sizeof(Element)));
                } else {
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const uint2 pair = *reinterpret_cast<const uint2*>(at + (s + i) * DEPTH * sizeof(Element));
                        four[2 * i] = pair.x, four[2 * i + 1] = pair.y;
                    }
                }
                b[s][j][0] = four[0], b[s][j][1] = four[1];
                b[s + 1][j][0] = four[2], b[s + 1][j][1] = four[3];
            }
        }
    }
};
