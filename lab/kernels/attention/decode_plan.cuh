// How decode attention is divided over CTAs: on the device and from the lengths, so that nobody plans on the host.
//
// The units of all sequences lie in a row, UNIT tokens each; every sequence is schedule::overhead_units longer, for what
// it costs at its start and end. The row is cut into stretches of one length, and each finds its own by a scan over the
// lengths; where all are alike, by arithmetic. The CTAs of a stretch are neighbours, each with other KV heads: they read the
// same tokens at the same time.
//
//   sequences  |.-------------|.-------------|.---|.---|.--------------------|     . overhead, - units
//   stretches  |     0     |     1     |     2     |     3     |     4       |
#pragma once
#include "ptx/load.cuh"
#include "schedule.cuh"

constexpr int LANES = 32;
constexpr int UNIT = schedule::unit;  // tokens
constexpr int OVERHEAD = schedule::overhead_units;
constexpr uint32_t FULL = 0xffffffffu;
constexpr bool ALONE = schedule::cluster != 1;  // there is one sequence, so each stretch has one part at most
constexpr int AT_FIRST = schedule::planned_at_once / LANES;  // sequences of a lane, whose lengths it asks for together

static_assert(OVERHEAD >= !ALONE, "a sequence without keys is one too");

// The lengths of a batch, in device memory; or the greatest ones, where all are those.
struct Batch {
    const int32_t *q_starts, *kv_lens;
    int size, max_q_len, max_kv_len;
};

// One sequence: its queries, and the keys that any of them sees; no unit where there is no query.
struct Sequence {
    int q_start, q_len, kv_len;
    int first_unit, units;

    // How much of the row it takes.
    __device__ __forceinline__ int cost() const { return max(OVERHEAD + units, 1) * (q_len > 0); }
};

__device__ __forceinline__ Sequence sequence(const Batch& batch, int index) {
    Sequence s;
    if constexpr (problem::uniform) {
        s.q_start = index * batch.max_q_len;
        s.q_len = batch.max_q_len;
        s.kv_len = batch.max_kv_len;
    } else {
        const bool exists = index < batch.size;  // or it has no queries
        s.q_start = ptx::load::cached_4_if(batch.q_starts + index, exists);
        s.q_len = int(ptx::load::cached_4_if(batch.q_starts + index + 1, exists)) - s.q_start;
        s.kv_len = min(int(ptx::load::cached_4_if(batch.kv_lens + index, exists)), batch.max_kv_len);
    }
    const int first = problem::window > 0 ? max(s.kv_len - s.q_len + 1 - problem::window, 0) : 0;
    s.first_unit = first / UNIT;
    s.units = max((s.kv_len + UNIT - 1) / UNIT - s.first_unit, 0) * (s.q_len > 0);
    return s;
}

// The inclusive sum over the lanes up to this one.
__device__ __forceinline__ int prefix_sum(int value) {
    const int lane = threadIdx.x % LANES;
#pragma unroll
    for (int offset = 1; offset < LANES; offset *= 2) {
        const int below = __shfl_up_sync(FULL, value, offset);
        if (lane >= offset) value += below;
    }
    return value;
}

// The costs of sequences `first` to `first` + 31, one a lane.
__device__ __forceinline__ int lane_cost(const Batch& batch, int first) {
    return sequence(batch, first + threadIdx.x % LANES).cost();
}

// The part of a sequence that one stretch has: units `lo` to `hi` of those of the sequence.
struct Part {
    int index = -1;  // of the sequence; -1 is no part
    int begin;       // of the sequence in the row
    Sequence sequence;
    int lo, hi;

    __device__ __forceinline__ bool exists() const { return index >= 0; }
    __device__ __forceinline__ bool whole() const { return hi - lo == sequence.units; }

    // Keys that row 0 sees end here; each further query sees one more.
    __device__ __forceinline__ int first_limit() const {
        return problem::causal ? sequence.kv_len - sequence.q_len + 1 : sequence.kv_len;
    }

    // The stretches that share the sequence.
    __device__ __forceinline__ int first_stretch(int length) const { return (begin + OVERHEAD) / length; }
    __device__ __forceinline__ int last_stretch(int length) const {
        return (begin + OVERHEAD + sequence.units - 1) / length;
    }
};

// Walks over the parts of one of so many stretches; the lanes of a warp do it together and alike.
struct Walk {
    Batch batch;
    int length, from, to;  // of a stretch; where this one begins and ends
    int index, begin;      // the sequence that comes next, and where it begins

    __device__ __forceinline__ Walk(const Batch& batch, int stretch, int stretches)
        : batch(batch), index(0), begin(0) {
        if constexpr (problem::uniform || ALONE) {
            const int cost = sequence(batch, 0).cost();
            cut(batch.size * cost, stretch, stretches);
            index = ALONE ? from >= cost : from / cost;
            begin = index * cost;
            return;
        }
        int cost[AT_FIRST], group[AT_FIRST], total = 0;
#pragma unroll
        for (int i = 0; i < AT_FIRST; ++i) cost[i] = lane_cost(batch, i * LANES);
        for (int first = AT_FIRST * LANES; first < batch.size; first += LANES) total += lane_cost(batch, first);
        if (batch.size > AT_FIRST * LANES) total = __reduce_add_sync(FULL, total);
#pragma unroll
        for (int i = 0; i < AT_FIRST; ++i) total += group[i] = __reduce_add_sync(FULL, cost[i]);
        cut(total, stretch, stretches);
        int own = 0;  // of the 32 among which the stretch begins
#pragma unroll
        for (int i = 0; i < AT_FIRST; ++i) {
            if (index < i * LANES) continue;
            own = cost[i];
            if (begin + group[i] > from) continue;
            begin += group[i];
            index += LANES;
        }
        if (index < AT_FIRST * LANES) pass(begin + prefix_sum(own));
        for (int first = AT_FIRST * LANES; first == index && first < batch.size; first += LANES)
            pass(begin + prefix_sum(lane_cost(batch, first)));
    }

    // Go by those of 32 sequences that end before the stretch begins; `upto` is where that of this lane ends.
    __device__ __forceinline__ void pass(int upto) {
        index += __popc(__ballot_sync(FULL, upto <= from));
        begin = __reduce_max_sync(FULL, upto <= from ? upto : begin);
    }

    __device__ __forceinline__ void cut(int total, int stretch, int stretches) {
        length = max((total + stretches - 1) / stretches, schedule::least_units);
        from = stretch * length;
        to = from + length;
    }

    // What the stretch has of the sequence that comes next, if anything.
    __device__ __forceinline__ Part take() {
        const Sequence s = sequence(batch, index);
        const int lo = max(from - begin - OVERHEAD, 0), hi = min(to - begin - OVERHEAD, s.units);
        const bool empty = s.units == 0 && s.cost() > 0 && begin >= from;  // its result is zeros
        const Part part = {lo < hi || empty ? index : -1, begin, s, s.first_unit + lo, s.first_unit + max(hi, lo)};
        ++index;
        begin += s.cost();
        return part;
    }

    __device__ __forceinline__ Part next() {
        if constexpr (ALONE) {
            if (index == 0) return take();
        } else {
            while (begin < to && index < batch.size) {
                const Part part = take();
                if (part.exists()) return part;
            }
        }
        return {};
    }
};
