// Decode attention on the tensor cores: K and V are the A operand of mma.sync, and the queries that share a KV head, all
// of its group's and of every token, are the columns of B, eight to a tile. So few queries waste little.
//
// K's fragments come by ldmatrix, V's by ldmatrix.trans, from the same places. Of an fp8 cache they hold two elements
// for each 16-bit one: K's are a fragment as they are, if q is read in the same order; V's are one after a permutation of
// bytes, whose rows are pairs of neighbours along head_dim.
#pragma once
#include "lab/kernels/attention/decode_stream.cuh"
#include "ptx/convert.cuh"
#include "ptx/ex2.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

using Activation = problem::activations;
constexpr bool FP8 = sizeof(Element) == 1;

// What the tensor cores multiply: fp8 becomes fp16 in registers, which is exact.
template <typename T>
struct Widened {
    using type = T;
};
template <>
struct Widened<fp8> {
    using type = fp16;
};
using Operand = Widened<Element>::type;
template <typename A, typename B>
constexpr bool SAME = false;
template <typename A>
constexpr bool SAME<A, A> = true;

constexpr int MMA_N = 8;                      // columns of an mma
constexpr int TILES = schedule::query_tiles;  // of eight columns that a warp has
constexpr int STEPS = DIM / 16;               // mma along head_dim
constexpr int LOADS = ROW_BYTES / 32;         // ldmatrix of 16 rows
constexpr int STEPS_A_LOAD = STEPS / LOADS;
constexpr float QUERY_SCALE = FP8 ? 1.f / (1 << schedule::query_shift) : 1;  // fp16 ends at 65504
// Weights are relative to a power of two. The largest is at least 2^(HEADROOM - 1), so that in fp16 small ones lose
// nothing, and at most 2^(HEADROOM + SLACK): sums are scaled anew only where it grows beyond.
constexpr float HEADROOM = SAME<Operand, fp16> ? schedule::headroom : 0, SLACK = schedule::slack;
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// -inf: the score of a token that is not seen.
__device__ __forceinline__ float unseen() { return __uint_as_float(0xff800000u); }

// 2^n, which is exact, for whole n up to 127; 1 where n is no number, as for two rows that have seen nothing.
__device__ __forceinline__ float power_of_two(float n) {
    constexpr int BIAS = 127, SIGNIFICAND = 23;
    return __uint_as_float(max(__float2int_rz(n) + BIAS, 0) << SIGNIFICAND);
}

// B fragments of q: lane (g, t) has row g of a tile.
using Queries = uint32_t[TILES][STEPS][2];

// Rows of q that share a KV head: those of a token side by side. Those that are not there are 0.
__device__ __forceinline__ void load_queries(Queries& queries, const Activation* q, const Sequence& sequence, int head,
                                             int q_heads, int first_row) {
    const int g = threadIdx.x % LANES / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
        const int row = first_row + n * MMA_N + g;
        const bool inside = row < sequence.q_len * problem::group;
        const int64_t at =
            int64_t(sequence.q_start + row / problem::group) * q_heads + head * problem::group + row % problem::group;
        const Activation* from = q + at * DIM;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            if constexpr (FP8) {
                const Vector<8> four = ptx::load::cached_8_if(from + 16 * s + 4 * t, inside);
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    queries[n][s][i] =
                        ptx::convert::pair<fp16>(ptx::convert::low<Activation>(four.words[i]) * QUERY_SCALE,
                                                 ptx::convert::high<Activation>(four.words[i]) * QUERY_SCALE);
            } else {
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    queries[n][s][i] = ptx::load::cached_4_if(from + 16 * s + 8 * i + 2 * t, inside);
            }
        }
    }
}

struct Softmax {
    float base[TILES][2], sum[TILES][2];  // of this lane's columns: exponents, and sums over this lane's tokens alone
    float o[STEPS][TILES][4];
};

__device__ __forceinline__ void clear(Softmax& s) {
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) s.base[n][i] = unseen(), s.sum[n][i] = 0;
#pragma unroll
        for (int h = 0; h < STEPS; ++h)
#pragma unroll
            for (int i = 0; i < 4; ++i) s.o[h][n][i] = 0;
    }
}

// Which element along head_dim a lane's sums are of: i = 0 the first two of four, i = 1 the others.
__device__ __forceinline__ int column_of(int h, int i) {
    const int g = threadIdx.x % LANES / 4;
    return 16 * h + (FP8 ? 2 * g + i : g + 8 * i);
}

// The shared addresses that this lane gives ldmatrix. Matrices are those of A's registers: of keys tokens 0 to 7 and 8 to
// 15 of a chunk, then of the next one; of values two chunks of tokens 0 to 7, then of the others. The chunks of load p are
// at `address ^ p * 32`.
__device__ __forceinline__ uint32_t key_address(uint32_t keys) {
    const int lane = threadIdx.x % LANES, token = lane % 16;
    return keys + token * ROW_BYTES + permuted(lane / 16, token) * 16;
}
__device__ __forceinline__ uint32_t value_address(uint32_t values) {
    const int lane = threadIdx.x % LANES, token = lane / 16 * 8 + lane % 8;
    return values + token * ROW_BYTES + permuted(lane / 8 % 2, token) * 16;
}

// Scores of 16 tokens: lane (g, t) gets, of columns 2 t and 2 t + 1, those of token g, then of token g + 8.
using Scores = float[TILES][4];

__device__ __forceinline__ void multiply_k(Scores& scores, uint32_t keys, const Queries& queries) {
    const uint32_t address = key_address(keys);
    float d[2][TILES][4] = {};  // two sums, for an mma does not wait for the one before
#pragma unroll
    for (int p = 0; p < LOADS; ++p) {
        uint32_t four[4];
        ptx::ldmatrix::x4(four, address ^ (p * 32));
#pragma unroll
        for (int i = 0; i < STEPS_A_LOAD; ++i) {
            const int s = p * STEPS_A_LOAD + i;
            uint32_t a[4];
            if constexpr (FP8) {
                a[0] = ptx::convert::widen_fp8(uint16_t(four[2 * i])), a[2] = ptx::convert::widen_upper_fp8(four[2 * i]);
                a[1] = ptx::convert::widen_fp8(uint16_t(four[2 * i + 1]));
                a[3] = ptx::convert::widen_upper_fp8(four[2 * i + 1]);
            } else {
                a[0] = four[0], a[1] = four[1], a[2] = four[2], a[3] = four[3];
            }
#pragma unroll
            for (int n = 0; n < TILES; ++n) ptx::mma::m16n8k16<Operand>(d[s % 2][n], a, queries[n][s]);
        }
    }
#pragma unroll
    for (int n = 0; n < TILES; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[n][i] = d[0][n][i] + d[1][n][i];
}

// Where a query sees a token: from `limit - window` on, below `limit`.
__device__ __forceinline__ void mask(Scores& scores, const Part& part, int unit, int first_row) {
    const int g = threadIdx.x % LANES / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < TILES; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = first_row + n * MMA_N + 2 * t + i % 2, token = unit * UNIT + g + i / 2 * 8;
            const int limit = part.first_limit() + (problem::causal ? row / problem::group : 0);
            if (token >= min(limit, part.sequence.kv_len) || (problem::window > 0 && token < limit - problem::window))
                scores[n][i] = unseen();
        }
}

// A new base, from the largest score of all lanes: what was summed before is scaled to it.
__device__ __forceinline__ void rescale(Softmax& s, const float (&largest)[TILES][2]) {
#pragma unroll
    for (int n = 0; n < TILES; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float now = largest[n][i];
#pragma unroll
            for (int offset = 4; offset < LANES; offset *= 2) now = fmaxf(now, __shfl_xor_sync(FULL, now, offset));
            now = fmaxf(ceilf(now), s.base[n][i]);
            const float factor = power_of_two(s.base[n][i] - now);
            s.base[n][i] = now;
            s.sum[n][i] *= factor;
#pragma unroll
            for (int h = 0; h < STEPS; ++h) s.o[h][n][i] *= factor, s.o[h][n][i + 2] *= factor;
        }
}

// Scores to weights.
__device__ __forceinline__ void weigh(Softmax& s, Scores& scores, float scale_log2) {
    float largest[TILES][2];
    bool grows = false;
#pragma unroll
    for (int n = 0; n < TILES; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            largest[n][i] = fmaf(fmaxf(scores[n][i], scores[n][i + 2]), scale_log2, -HEADROOM);
            grows |= largest[n][i] > s.base[n][i] + SLACK;
        }
    if (__any_sync(FULL, grows)) rescale(s, largest);
#pragma unroll
    for (int n = 0; n < TILES; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float base = s.base[n][i] == unseen() ? 0 : s.base[n][i];  // -inf less -inf is no number
            scores[n][i] = ptx::ex2::approx(fmaf(scores[n][i], scale_log2, -base));
            scores[n][i + 2] = ptx::ex2::approx(fmaf(scores[n][i + 2], scale_log2, -base));
            s.sum[n][i] += scores[n][i] + scores[n][i + 2];
        }
}

// P to the B fragments of P V: columns and tokens change places between lanes.
using Weights = uint32_t[TILES][2];
__device__ __forceinline__ void transpose(Weights& b, const Scores& p) {
    const int g = threadIdx.x % LANES / 4, t = threadIdx.x % 4;
    const uint32_t halves = g % 2 ? 0x7632 : 0x5410;
#pragma unroll
    for (int n = 0; n < TILES; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t pair = ptx::convert::pair<Operand>(p[n][2 * i], p[n][2 * i + 1]);
            const uint32_t first = __shfl_sync(FULL, pair, 8 * t + g / 2);
            const uint32_t second = __shfl_sync(FULL, pair, 8 * t + 4 + g / 2);
            b[n][i] = __byte_perm(first, second, halves);
        }
}

// O += V^T P: the rows of A are elements along head_dim, its columns tokens.
__device__ __forceinline__ void multiply_v(Softmax& s, uint32_t values, const Weights& p) {
    const uint32_t address = value_address(values);
#pragma unroll
    for (int load = 0; load < LOADS; ++load) {
        uint32_t four[4];
        ptx::ldmatrix::x4_transposed(four, address ^ (load * 32));
#pragma unroll
        for (int i = 0; i < STEPS_A_LOAD; ++i) {
            uint32_t a[4];
            if constexpr (FP8) {
                const uint32_t lower = __byte_perm(four[i], 0, 0x3120), upper = __byte_perm(four[i + 2], 0, 0x3120);
                a[0] = ptx::convert::widen_fp8(uint16_t(lower)), a[1] = ptx::convert::widen_upper_fp8(lower);
                a[2] = ptx::convert::widen_fp8(uint16_t(upper)), a[3] = ptx::convert::widen_upper_fp8(upper);
            } else {
                a[0] = four[0], a[1] = four[1], a[2] = four[2], a[3] = four[3];
            }
#pragma unroll
            for (int n = 0; n < TILES; ++n) ptx::mma::m16n8k16<Operand>(s.o[load * STEPS_A_LOAD + i][n], a, p[n]);
        }
    }
}

// One unit of a part: what its tokens add to the sums.
__device__ __forceinline__ void add_unit(Softmax& softmax, const Stage& stage, const Queries& queries, const Part& part,
                                         int unit, int first_row, float scale_log2) {
    const uint32_t keys = ptx::address::shared(&stage);
    Scores scores;
    multiply_k(scores, keys, queries);
    if ((unit + 1) * UNIT > part.first_limit() || problem::window > 0) mask(scores, part, unit, first_row);
    weigh(softmax, scores, scale_log2);
    Weights weights;
    transpose(weights, scores);
    multiply_v(softmax, keys + HALF, weights);
}

// All units of a part for a team. `stage` is the first one's; so many are `missing` that are not yet under way.
__device__ __forceinline__ void add_part(Softmax& softmax, Source& source, Stage (&ring)[STAGES], int& stage, int& missing,
                                         const Queries& queries, const Part& part, const Team& team, int first_row,
                                         float scale_log2) {
#pragma unroll 1
    for (int unit = part.lo + team.slot; missing > 0 || unit < part.hi;) {
        if (missing == 0) {
            ptx::cp_async::wait_group<STAGES - 2>();
            team.sync();  // all its copies are there, and all its warps have left the stage before
        }
        source.copy_next(ring[(stage + STAGES - 1 - missing) % STAGES]);
        if (missing > 0) {
            --missing;
            continue;
        }
        add_unit(softmax, ring[stage], queries, part, unit, first_row, scale_log2);
        stage = (stage + 1) % STAGES;
        unit += SLOTS;
    }
}
