// rope_append: queries and keys of one QKV projection turned by their positions; keys and values into the KV cache.
//
// Idea: one pass over the rows. A lane has the same 8 elements of both halves of a head, whichever elements turn
// together, so that all loads and stores are 16 bytes; and `rounds` heads, which share one lane's cosines and sines.
//
//   head_dim = 128:      lane 0  lane 1 ... lane 7 | lane 0  lane 1 ... lane 7
//   element of the head:   0       8    ...   56   |   64      72   ...   120        four heads a warp
//
// Warp roles: all alike. A CTA has heads of one token: queries, then keys, then values, as a row of qkv holds them.
//
// A bias is added and heads are normalised on the way, where a model asks for it: the lanes of a head add up its squares.
//
// Launches overlap: bias and norms never change, so they are read before the launch before has ended, and where they are
// settled positions, slots and turns, of which one says where the next lies; all else depends on what that one writes.
//
// The launch behind may begin before the one ahead has ended, or `late`, when it has; if nothing else is said, late where
// there are several tokens: a step of 16 sequences, whose layers take whole SMs, was measured to be a third longer else.
//
// Bytes expected from HBM: qkv, q, what is appended, and a row of `turns` a token, once each; bias and norms once.
#include "lab/kernels/common/warp_sum.cuh"
#include "ptx/convert.cuh"
#include "ptx/griddepcontrol.cuh"
#include "ptx/load.cuh"
#include "ptx/store.cuh"
#include "schedule.cuh"

using Activation = problem::activations;
using Element = problem::kv;

constexpr int LANES = 32;
constexpr int VECTOR = sizeof(Vector16) / sizeof(Activation);  // elements of a lane's load
constexpr int DIM = problem::head_dim, HALF = DIM / 2;
constexpr int UNITS = HALF / VECTOR;                           // lanes of a head
constexpr int AT_ONCE = schedule::warps * (LANES / UNITS);     // heads of a CTA, in each round
constexpr bool PAGED = problem::page > 0;
constexpr int PAGE = PAGED ? problem::page : 1;  // tokens
constexpr bool FP8 = sizeof(Element) == 1;
static_assert(VECTOR == 8 && LANES % UNITS == 0, "whole heads a warp");

struct Floats {
    float of[VECTOR];
};

struct Cache {
    Element *k, *v;
    int kv_heads;

    // Where a slot's keys or values of a head begin.
    __device__ __forceinline__ Element* at(bool value, int slot, int head) const {
        if constexpr (!PAGED) return (value ? v : k) + (int64_t(slot) * kv_heads + head) * DIM;
        const int64_t page = slot / PAGE, token = slot % PAGE;
        return k + (((page * 2 + value) * kv_heads + head) * PAGE + token) * DIM;
    }
};

__device__ __forceinline__ Floats widened(const Vector16& v) {
    Floats f;
#pragma unroll
    for (int i = 0; i < VECTOR / 2; ++i) {
        f.of[2 * i] = ptx::convert::low<Activation>(v.words[i]);
        f.of[2 * i + 1] = ptx::convert::high<Activation>(v.words[i]);
    }
    return f;
}

__device__ __forceinline__ Vector16 rounded(const Floats& f) {
    Vector16 v;
#pragma unroll
    for (int i = 0; i < VECTOR / 2; ++i) v.words[i] = ptx::convert::pair<Activation>(f.of[2 * i], f.of[2 * i + 1]);
    return v;
}

__device__ __forceinline__ void add(Floats& f, const Vector16& bias) {
    const Floats addend = widened(bias);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) f.of[i] += addend.of[i];
}

__device__ __forceinline__ float squares(const Floats& f) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) sum = fmaf(f.of[i], f.of[i], sum);
    return sum;
}

__device__ __forceinline__ void scale(Floats& f, float root, const Vector16& weight) {
    const Floats factor = widened(weight);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) f.of[i] = f.of[i] * root * factor.of[i];
}

// Cosines and sines of the pairs that a lane's elements belong to.
struct Turns {
    float2 pair[VECTOR];

    __device__ __forceinline__ void load(const float2* row, int unit) {
#pragma unroll
        for (int i = 0; i < VECTOR / 2; ++i) {
            // halves: eight pairs in a row. neighbours: four of the first half's, four of the second's.
            const int at = problem::neighbours ? (i / 2 * HALF + unit * VECTOR) / 2 + i % 2 * 2 : unit * VECTOR + 2 * i;
            const Vector16 two = ptx::load::cached(row + at);
            pair[2 * i] = {__uint_as_float(two.words[0]), __uint_as_float(two.words[1])};
            pair[2 * i + 1] = {__uint_as_float(two.words[2]), __uint_as_float(two.words[3])};
        }
    }

    static __device__ __forceinline__ void turn(float& x, float& y, float2 by) {
        const float turned = x * by.x - y * by.y;
        y = y * by.x + x * by.y;
        x = turned;
    }

    __device__ __forceinline__ void apply(Floats& first, Floats& second) const {
        if constexpr (problem::neighbours) {
#pragma unroll
            for (int i = 0; i < VECTOR / 2; ++i) {
                turn(first.of[2 * i], first.of[2 * i + 1], pair[i]);
                turn(second.of[2 * i], second.of[2 * i + 1], pair[VECTOR / 2 + i]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) turn(first.of[i], second.of[i], pair[i]);
        }
    }
};

// Where a token goes, and how it turns: a row of turns is known when the position is there.
struct Place {
    uint32_t position;
    int slot;
    Turns turns;

    __device__ __forceinline__ void ask(const int32_t* positions, const int32_t* slots, int64_t token, int rows) {
        position = min(ptx::load::cached_4(positions + token), uint32_t(rows - 1));
        slot = ptx::load::cached_4(slots + token);
    }
    __device__ __forceinline__ void ask_turns(const float2* table, int unit) {
        turns.load(table + int64_t(position) * HALF, unit);
    }
};

__device__ __forceinline__ void append(Activation* to, const Floats& f, float) {
    ptx::store::global<16>(to, rounded(f));
}

__device__ __forceinline__ void append(fp8* to, const Floats& f, float scale) {
    Vector<VECTOR> v;
#pragma unroll
    for (int i = 0; i < VECTOR / 4; ++i)
        v.words[i] = ptx::convert::pair_fp8(f.of[4 * i] / scale, f.of[4 * i + 1] / scale) |
                     uint32_t(ptx::convert::pair_fp8(f.of[4 * i + 2] / scale, f.of[4 * i + 3] / scale)) << 16;
    ptx::store::global<VECTOR>(to, v);
}

extern "C" __global__ void __launch_bounds__(schedule::threads)
    rope_append(const Activation* __restrict__ qkv, const int32_t* __restrict__ positions,
                const int32_t* __restrict__ slots, const float2* __restrict__ turns,
                const Activation* __restrict__ bias, const Activation* __restrict__ norms,
                const float* __restrict__ k_scale, const float* __restrict__ v_scale, Activation* __restrict__ q,
                Element* __restrict__ k, Element* __restrict__ v, int q_heads, int kv_heads, int turn_rows, float eps) {
    const int64_t token = blockIdx.x;
    const int heads = q_heads + 2 * kv_heads, unit = threadIdx.x % UNITS;
    const int first_head = blockIdx.y * schedule::rounds * AT_ONCE + threadIdx.x / UNITS;
    const Cache cache{k, v, kv_heads};

    const bool at_once = schedule::late == 2 ? gridDim.x == 1 : !schedule::late;
    if (at_once) ptx::griddepcontrol::launch_dependents();
    Vector16 low_bias[schedule::rounds], high_bias[schedule::rounds];
    Vector16 low_norm[schedule::rounds], high_norm[schedule::rounds];
#pragma unroll
    for (int r = 0; r < schedule::rounds; ++r) {
        const int head = first_head + r * AT_ONCE;
        if constexpr (problem::bias) {
            low_bias[r] = ptx::load::cached_if(bias + head * DIM + unit * VECTOR, head < heads);
            high_bias[r] = ptx::load::cached_if(bias + head * DIM + unit * VECTOR + HALF, head < heads);
        }
        if constexpr (problem::norm) {
            const Activation* row = norms + (head < q_heads ? 0 : DIM) + unit * VECTOR;
            low_norm[r] = ptx::load::cached_if(row, head < q_heads + kv_heads);
            high_norm[r] = ptx::load::cached_if(row + HALF, head < q_heads + kv_heads);
        }
    }
    Place place;
    if (problem::settled && first_head < heads) {
        place.ask(positions, slots, token, turn_rows);
        place.ask_turns(turns, unit);
    }
    ptx::griddepcontrol::wait();  // until the launch before has written qkv, and reads q and the cache no more
    if (!at_once) ptx::griddepcontrol::launch_dependents();
    if (first_head >= heads) return;
    if (!problem::settled) place.ask(positions, slots, token, turn_rows);
    Vector16 low[schedule::rounds], high[schedule::rounds];
#pragma unroll
    for (int r = 0; r < schedule::rounds; ++r) {
        const int head = first_head + r * AT_ONCE;
        const Activation* from = qkv + (token * heads + head) * DIM + unit * VECTOR;
        low[r] = ptx::load::no_allocate_if<16>(from, head < heads);
        high[r] = ptx::load::no_allocate_if<16>(from + HALF, head < heads);
    }
    if (!problem::settled) place.ask_turns(turns, unit);
#pragma unroll
    for (int r = 0; r < schedule::rounds; ++r) {
        const int head = first_head + r * AT_ONCE;
        if (head >= heads) break;
        Floats first = widened(low[r]), second = widened(high[r]);
        const bool value = head >= q_heads + kv_heads;
        if constexpr (problem::bias) {
            add(first, low_bias[r]);
            add(second, high_bias[r]);
        }
        if constexpr (problem::norm) {
            if (!value) {
                const float mean = sum_of_lanes<UNITS>(squares(first) + squares(second)) * (1.0f / DIM);
                const float root = rsqrtf(mean + eps);
                scale(first, root, low_norm[r]);
                scale(second, root, high_norm[r]);
            }
        }
        if (!value) place.turns.apply(first, second);
        if (head < q_heads) {
            Activation* to = q + (token * q_heads + head) * DIM + unit * VECTOR;
            ptx::store::global<16>(to, rounded(first));
            ptx::store::global<16>(to + HALF, rounded(second));
        } else {
            const int kv_head = head - q_heads - (value ? kv_heads : 0);
            const float scale = FP8 ? (value ? v_scale : k_scale)[kv_head] : 1;
            Element* to = cache.at(value, place.slot, kv_head) + unit * VECTOR;
            append(to, first, scale);
            append(to + HALF, second, scale);
        }
    }
}
