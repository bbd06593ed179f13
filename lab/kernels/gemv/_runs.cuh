// Runs: what a warp reads of 16 rows of w along k at once, 1 KB, as a lane holds it, and the mma fragments that it makes.
// Lane l is in group g = l / 4 and is number t = l % 4 there. Within a sum the order of k is free: a lane takes the
// columns of w that its own 32 bytes hold, whatever they are, and reads x at the same columns.
#pragma once
#include "ptx/convert.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"
#include "schedule.cuh"

using Element = problem::activations;  // of x, and what the tensor cores multiply
using Weight = problem::weights;

constexpr int LANES = 32;
constexpr int TILE = 16;                        // rows of w in a run, as in an mma
constexpr int DEPTH = 16;                       // of an mma along k
constexpr int EIGHT = 8;                        // tokens of an mma
constexpr int TOKEN_TILES = schedule::block_m / EIGHT;
constexpr int VECTOR = sizeof(Vector16);
constexpr int VECTORS = 2;                      // of 16 bytes that a lane holds of a run
constexpr bool GROUPED = problem::group > 0;

// Row-major weights: 64 bytes of each row. Lane (g, t) holds the 16 bytes at 16 t of row g and of row g + 8.
template <typename T>
struct Run {
    static constexpr int COLUMNS = 64 / sizeof(T);
    static constexpr int X_PAD = sizeof(T) == 1 ? 16 : 64;  // bytes between rows of x, modulo 128, for its banks

    Vector16 part[VECTORS];

    // The A fragment of step `s` of the run.
    __device__ __forceinline__ void fragment(uint32_t (&a)[4], int s) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (sizeof(T) == 1)
                a[i] = ptx::convert::widen_fp8_to_bf16(part[i % 2].words[s], i / 2 * 2);
            else
                a[i] = part[i % 2].words[2 * s + i / 2];
        }
    }
};

// Register `i` of an A fragment from a word of packed int4 (sim/int4.py): q + INT4_BIAS as bf16. Numbers from 16 to 31
// have q in the upper four bits of their digits, and whoever sums takes the bias away: less work than exact q.
constexpr float INT4_BIAS = 16;
__device__ __forceinline__ uint32_t biased_bf16(uint32_t word, int i) {
    constexpr uint32_t DIGITS = 0x00780078, SIXTEENS = 0x41804180;
    const uint32_t placed = i == 0 ? word << 3 : word >> (4 * i - 3);
    return (placed & DIGITS) | SIXTEENS;
}

// Packed int4: two tiles of 16 x 64, whose words are the fragments of four steps each; q + INT4_BIAS.
template <>
struct Run<int4x2> {
    static constexpr int COLUMNS = 128;
    static constexpr int X_PAD = 16;

    Vector16 part[VECTORS];

    __device__ __forceinline__ void fragment(uint32_t (&a)[4], int s) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = biased_bf16(part[s / 4].words[s % 4], i);
    }
};

constexpr int COLUMNS = Run<Weight>::COLUMNS;  // of w in a run
constexpr int STEPS = COLUMNS / DEPTH;         // mma steps of a run
constexpr int GROUP = GROUPED ? problem::group : COLUMNS;  // columns of w that share scale and offset
constexpr int GROUPS = COLUMNS / GROUP;                    // of a run

// The B fragments of a run: of eight tokens each, the columns that the A fragments of each step have.
struct Tokens {
    uint32_t b[STEPS][TOKEN_TILES][2];

    // `x` is the first of a run's columns in shared memory, `pitch` the bytes from token to token; tokens beyond the
    // last are the last one again.
    __device__ __forceinline__ void load(const uint8_t* x, int pitch, int tokens) {
        const int lane = threadIdx.x % LANES;
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j) {
            if constexpr (GROUPED) {
                const int token = min(j * EIGHT + lane % EIGHT, tokens - 1);
                const uint32_t at = ptx::address::shared(x + token * pitch + lane / EIGHT * VECTOR);
#pragma unroll
                for (int s = 0; s < STEPS; s += 2) {
                    uint32_t four[4];
                    ptx::ldmatrix::x4(four, at + s * DEPTH * sizeof(Element));
                    b[s][j][0] = four[0], b[s][j][1] = four[1];
                    b[s + 1][j][0] = four[2], b[s + 1][j][1] = four[3];
                }
            } else {
                constexpr int BYTES = COLUMNS / 4 * sizeof(Element);  // that a lane reads of a token
                const int token = min(j * EIGHT + lane / 4, tokens - 1);
                const auto* at = reinterpret_cast<const Vector16*>(x + token * pitch + lane % 4 * BYTES);
#pragma unroll
                for (int i = 0; i < BYTES / VECTOR; ++i) {
                    const Vector16 four = at[i];
                    b[2 * i][j][0] = four.words[0], b[2 * i][j][1] = four.words[1];
                    b[2 * i + 1][j][0] = four.words[2], b[2 * i + 1][j][1] = four.words[3];
                }
            }
        }
    }
};
