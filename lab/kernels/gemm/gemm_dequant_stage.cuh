// Narrow weights in a stage of shared memory, and how a warp reads its 16 rows as bf16 fragments of A in m64nNk16.
#pragma once
#include "lab/kernels/common/dequantise.cuh"
#include "lab/kernels/gemm/tma_ring.cuh"
#include "ptx/convert.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"
#include "ptx/wgmma.cuh"

constexpr int BLOCK_K = 128;  // of a stage
constexpr int MMA_K = 16;
constexpr int ROWS = 16;  // of w, of a warp
constexpr int UNIT_STEPS = schedule::unit_steps;  // k16-steps that are dequantised, and multiplied, together
constexpr int UNIT_K = UNIT_STEPS * MMA_K;
constexpr int UNITS = BLOCK_K / UNIT_K;
constexpr int ACCUMULATORS = schedule::block_m / 2;  // of a consumer's thread
constexpr int BOX_K = 64;                            // of a box of x: 128 bytes
constexpr bool GROUPED = schedule::group > 0;
constexpr bool SUMMED = GROUPED && !problem::zero_points;  // x, over each group

using Sums = float[ACCUMULATORS];
using Fragments = uint32_t[UNIT_STEPS][4];
using Tokens = bf16[BLOCK_K / BOX_K][schedule::block_m][BOX_K];  // x, with the 128-byte swizzle

// A warp's 16 rows of w; a lane is in group g of eight and is number t of four there (ptx/mma.cuh).
struct Lane {
    int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
};

// The tensor maps of what is loaded; only int4 has `pairs`, scales and offsets.
struct Maps {
    const TensorMap &x, &w, &pairs;
};

// int4: tiles of 16 x 64 as they are packed (sim/int4.py), scales and offsets. Integers are multiplied less their zero
// points where they have some.
template <int group>
struct Weights {
    static constexpr int GROUPS = BLOCK_K / group;
    static constexpr int TILE_K = 64;

    // Of rows g and g + 8 in a group.
    struct alignas(8) Quad {
        fp16 scale, offset, lower_scale, lower_offset;
    };

    uint32_t tiles[schedule::block_n / ROWS][BLOCK_K / TILE_K][WARP][4];
    Quad pairs[schedule::block_n / ROWS][GROUPS][ROWS / 2];

    static __device__ constexpr bool starts_group(int k) { return k % group == 0; }

    __device__ __forceinline__ void load(const Maps& maps, int step, int row, uint64_t& full) {
        ptx::tma::load_3d(tiles, maps.w, 0, step * schedule::runs, row / ROWS, full);
        ptx::tma::load_3d(pairs, maps.pairs, 0, step * GROUPS, row / ROWS, full);
    }

    // This lane's pairs of the group that k is in.
    __device__ __forceinline__ Quad quad(int k) const {
        const Lane lane;
        return pairs[lane.warp][k / group][lane.g];
    }

    // Scales of rows g and g + 8 in the group that k is in.
    __device__ __forceinline__ float2 scales(int k) const {
        const Quad own = quad(k);
        return {ptx::convert::to_float(own.scale), ptx::convert::to_float(own.lower_scale)};
    }

    // What a lane has of a unit, and of zero points those of rows g and g + 8.
    struct Packed {
        struct alignas(4 * UNIT_STEPS) Words {
            uint32_t of_step[UNIT_STEPS];
        } words;
        Quad pairs;
    };

    __device__ __forceinline__ Packed read(int unit) const {
        const int step = unit * UNIT_STEPS;
        const uint32_t* own = tiles[threadIdx.x / WARP][step / 4][threadIdx.x % WARP];
        return {*reinterpret_cast<const typename Packed::Words*>(own + step % 4), quad(unit * UNIT_K)};
    }

    // Integers less their zero points, or as q + INT4_BIAS.
    static __device__ __forceinline__ void widen(Fragments& a, const Packed& packed) {
        const uint32_t one = gridDim.y;  // a constant that it multiplies stays in a register
        const float upper = ptx::convert::to_float(packed.pairs.offset) + ZERO_BIAS;
        const float lower = ptx::convert::to_float(packed.pairs.lower_offset) + ZERO_BIAS;
        const uint32_t zeros[2] = {ptx::convert::pair<bf16>(upper, upper), ptx::convert::pair<bf16>(lower, lower)};
#pragma unroll
        for (int i = 0; i < 4 * UNIT_STEPS; ++i) {
            const uint32_t word = packed.words.of_step[i / 4];
            a[i / 4][i % 4] = problem::zero_points ? bf16_of_int4(word, i % 4, zeros[i % 2], INT4_DIGITS * one)
                                                   : biased_bf16_of_int4(word, i % 4, INT4_SIGNIFICANDS * one);
        }
    }

    // Accumulators 4 j .. 4 j + 3 are tokens 8 j + 2 t and the next of row g, then those of row g + 8.
    // total += scale * partial.
    static __device__ __forceinline__ void promote(Sums& total, const Sums& partial, float2 scale) {
#pragma unroll
        for (int i = 0; i < ACCUMULATORS; ++i)
            total[i] = fmaf(i % 4 < 2 ? scale.x : scale.y, partial[i], total[i]);
    }
};

// The same with offsets that are added, and so with the sums of x over each group.
template <int group>
struct SummedWeights : Weights<group> {
    using Weights<group>::GROUPS;

    alignas(16) float sums[GROUPS][schedule::block_m / 8][2][8][4];  // eight columns for each token, as below

    // What the sums of x are multiplied with in the group that k is in, as a fragment of tf32, of which fp16 is a part: in
    // row g and row g + 8, the offset for columns 0 to 3 and for the others, which are -INT4_BIAS times the same, what
    // the bias is worth: the scale.
    __device__ __forceinline__ void offsets(float (&a)[4], int k) const {
        const auto own = this->quad(k);
        a[0] = ptx::convert::to_float(own.offset);
        a[1] = ptx::convert::to_float(own.lower_offset);
        a[2] = ptx::convert::to_float(own.scale);
        a[3] = ptx::convert::to_float(own.lower_scale);
    }

    // The sums of x of the group that k is in.
    __device__ __forceinline__ uint64_t sums_of(int k) const { return ptx::wgmma::descriptor_k_major(sums[k / group]); }

    // Sum x over each group, for 16 tokens, by one warp: x times a matrix of ones, in two chains where there is one group,
    // as an mma waits for the one whose sum it continues.
    __device__ __forceinline__ void sum_tokens(const Tokens& x, int first) {
        constexpr uint32_t ONES[2] = {0x3f803f80, 0x3f803f80};
        const Lane lane;
        const int row = first + threadIdx.x % 16;
        constexpr int CHAINS = GROUPS == 1 ? 2 : 1;
        float sum[CHAINS][4] = {};
#pragma unroll
        for (int k = 0; k < BLOCK_K; k += MMA_K) {
            uint32_t a[4];
            const int chunk = (k % BOX_K / 8 + threadIdx.x % WARP / 16) ^ row % 8;
            ptx::ldmatrix::x4(a, ptx::address::shared(&x[k / BOX_K][row][chunk * 8]));
            ptx::mma::m16n8k16<bf16>(sum[k / MMA_K % CHAINS], a, ONES);
            if ((k + MMA_K) % group == 0) {
                const int half = lane.t / 2;  // all columns of a row are the same: each of four lanes takes a part
                float rest = half ? sum[0][2] : sum[0][0];
                for (int c = 1; c < CHAINS; ++c) rest += half ? sum[c][2] : sum[c][0];
                keep(rest, sums[k / group][first / 8 + half][lane.t % 2][lane.g], lane.t % 2 ? -INT4_BIAS : 1);
                for (float(&chain)[4] : sum) chain[0] = chain[1] = chain[2] = chain[3] = 0;
            }
        }
    }

    // A sum as three tf32, of 11 digits each, which is exact; times a power of two.
    static __device__ __forceinline__ void keep(float rest, float (&to)[4], float times) {
        float parts[4] = {};
        for (int i = 0; i < 3; ++i) {
            const float part = __uint_as_float(__float_as_uint(rest) & 0xffffe000u);
            rest -= part;
            parts[i] = part * times;
        }
        *reinterpret_cast<float4*>(to) = {parts[0], parts[1], parts[2], parts[3]};
    }
};

// fp8: rows of 128 bytes, with the 128-byte swizzle; the 16 k of a step are one chunk of it.
template <>
struct Weights<0> {
    uint8_t rows[schedule::block_n][BLOCK_K];

    static __device__ constexpr bool starts_group(int) { return false; }

    __device__ __forceinline__ void load(const Maps& maps, int step, int row, uint64_t& full) {
        ptx::tma::load_2d(rows, maps.w, step * BLOCK_K, row, full);
    }

    // Where a unit is: what takes so many registers is read when it is widened.
    struct Packed {
        const uint8_t* own;
        int step;
    };

    __device__ __forceinline__ Packed read(int unit) const {
        const Lane lane;
        return {rows[lane.warp * ROWS + lane.g] + 2 * lane.t, unit * UNIT_STEPS};
    }

    static __device__ __forceinline__ void widen(Fragments& a, const Packed& packed) {
        const Lane lane;
#pragma unroll
        for (int s = 0; s < UNIT_STEPS; ++s) {
            const uint8_t* chunk = packed.own + ((packed.step + s) ^ lane.g) * MMA_K;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint8_t* pair = chunk + i % 2 * 8 * BLOCK_K + i / 2 * 8;
                a[s][i] = bf16_of_fp8(*reinterpret_cast<const uint16_t*>(pair), 0);
            }
        }
    }
};

template <int group, bool summed>
struct RowsOf {
    using type = Weights<group>;
};
template <int group>
struct RowsOf<group, true> {
    using type = SummedWeights<group>;
};
