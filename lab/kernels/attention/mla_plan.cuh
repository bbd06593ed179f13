// How MLA decode is divided over clusters: on the device and from the lengths, so that nobody plans on the host.
//
// A segment is what the rows of one cluster's tile, queries of one sequence, have to read: blocks of BLOCK_N tokens.
// All segments lie in a row, those of a sequence next to each other. Each is as long as its blocks and
// schedule::overhead more, for what a segment costs at its start and end. Every worker, a cluster, takes an equally
// long stretch of that row and finds it by itself: a scan over the lengths. So at most the first and the last segment
// of a worker are shared with others, and the partial result of such a segment has its slot: two a worker. Where segments
// that are whole, or cut into equally many pieces each, divide nearly as evenly, a piece counts as one: then a worker
// has no second part to begin, and of whole ones partial results cost nothing.
//
//   segments   |.-------------|.-------------|.---|.---|.--------------------|     . overhead, - blocks
//   workers    |     0     |     1     |     2     |     3     |     4       |
#pragma once
#include "ptx/load.cuh"
#include "ptx/prefetch.cuh"
#include "ptx/types.cuh"
#include "schedule.cuh"

constexpr int WARP = 32;
constexpr uint32_t FULL = 0xffffffffu;
constexpr int BLOCK_M = 64;  // rows of a CTA, each a query token's head
constexpr int BLOCK_N = 64;  // tokens
constexpr int ROWS = BLOCK_M * schedule::cluster;
constexpr int AT_ONCE = schedule::planned_at_once / WARP;  // sequences of a lane, whose lengths it asks for together

static_assert(schedule::overhead > 0, "a segment costs more than its blocks");

__device__ __forceinline__ int blocks_of(int extent, int block) { return (extent + block - 1) / block; }

// The lengths of a batch, in device memory; or the greatest ones, where all are those.
struct Batch {
    const int32_t *q_starts, *kv_lens;
    int size, max_q_len, max_kv_len;
};

struct Sequence {
    int q_start, q_len, kv_len;
    int tiles;   // of ROWS rows
    int blocks;  // one at least: where there is no key, one of which nothing is seen

    // The length of each of its segments, which is cut into so many pieces; 0: anywhere.
    __device__ __forceinline__ int cost(int pieces) const { return pieces > 0 ? pieces : schedule::overhead + blocks; }
};

__device__ __forceinline__ Sequence sequence(const Batch& batch, int index) {
    Sequence s;
    const bool exists = index < batch.size;  // or it has no queries
    if constexpr (problem::uniform) {
        s.q_start = index * batch.max_q_len;
        s.q_len = exists ? batch.max_q_len : 0;
        s.kv_len = batch.max_kv_len;
    } else {
        s.q_start = ptx::load::cached_4_if(batch.q_starts + index, exists);
        s.q_len = int(ptx::load::cached_4_if(batch.q_starts + index + 1, exists)) - s.q_start;
        s.kv_len = min(int(ptx::load::cached_4_if(batch.kv_lens + index, exists)), batch.max_kv_len);
    }
    s.tiles = blocks_of(s.q_len * problem::group, ROWS);
    s.blocks = max(blocks_of(s.kv_len, BLOCK_N), 1);
    return s;
}

// The inclusive sum over the lanes up to this one.
__device__ __forceinline__ int prefix_sum(int value) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) {
        const int below = __shfl_up_sync(FULL, value, offset);
        if (lane >= offset) value += below;
    }
    return value;
}

// How the row is cut: all arguments and results are positions in it.
struct Cuts {
    int pieces;                 // of every segment, which count as one each; 0: segments are cut anywhere
    int workers, each, longer;  // the first `longer` workers take one more than `each`

    // A warp does this together.
    __device__ __forceinline__ Cuts(const Batch& batch, int max_workers) {
        int segments = 0, cost = 0, longest = 0, shortest = batch.max_kv_len;
        const int size = problem::uniform ? 0 : batch.size;  // of those that are asked
        for (int first = threadIdx.x % WARP; first < size; first += AT_ONCE * WARP)
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                const Sequence s = sequence(batch, first + i * WARP);
                segments += s.tiles;
                cost += s.tiles * s.cost(0);
                longest = max(longest, s.blocks);
                if (s.tiles > 0) shortest = min(shortest, s.blocks);
            }
        if constexpr (problem::uniform) {
            const Sequence s = sequence(batch, 0);
            segments = batch.size * s.tiles;
            cost = segments * s.cost(0);
            longest = shortest = s.blocks;
        } else {
            segments = __reduce_add_sync(FULL, segments);
            cost = __reduce_add_sync(FULL, cost);
            longest = __reduce_max_sync(FULL, longest);
            shortest = __reduce_min_sync(FULL, shortest);
        }
        pieces = max(min(max_workers / max(segments, 1), shortest / schedule::least), 1);
        const int most = schedule::overhead + blocks_of(longest, pieces);  // of a piece
        if (blocks_of(segments * pieces, max_workers) * most > cost / max_workers + 2 * schedule::overhead) pieces = 0;
        const int total = pieces > 0 ? segments * pieces : cost;
        workers = pieces > 0 ? max_workers : min(max(total / schedule::least, 1), max_workers);
        each = total / workers;
        longer = total % workers;
    }

    // Those who have nothing begin where all ends.
    __device__ __forceinline__ int begin(int worker) const {
        const int own = min(worker, workers);
        return own * each + min(own, longer);
    }

    __device__ __forceinline__ int owner(int at) const {
        const int in_longer = longer * (each + 1);
        return at < in_longer ? at / (each + 1) : longer + (at - in_longer) / each;
    }
};

// Where a search along the row stopped: in this sequence, whose segments begin at `at`.
struct Place {
    int index, at;
};

// The first sequence whose segments end beyond `begin`; a warp does this.
__device__ __forceinline__ Place find(const Batch& batch, int pieces, int begin) {
    if constexpr (problem::uniform) {
        const Sequence s = sequence(batch, 0);
        const int length = s.tiles * s.cost(pieces), index = min(begin / length, batch.size);
        return {index, index * length};
    } else {
        int index = 0, at = 0, before = 0;
        for (int first = 0; first == index && first < batch.size; first += AT_ONCE * WARP) {
            int end[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                const Sequence s = sequence(batch, first + i * WARP + threadIdx.x % WARP);
                end[i] = s.tiles * s.cost(pieces);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                end[i] = before + prefix_sum(end[i]);
                before = __shfl_sync(FULL, end[i], WARP - 1);
                index += __popc(__ballot_sync(FULL, end[i] <= begin));
                at = __reduce_max_sync(FULL, end[i] <= begin ? end[i] : at);
            }
        }
        return {min(index, batch.size), at};
    }
}

// A part of a segment that one worker takes: blocks `lo` to `hi` of its sequence.
struct Part {
    int index;       // of the sequence; -1 is no part
    int row, first;  // the cluster's first row of q and y, and which of the sequence's rows that is
    int q_len, kv_len;
    int lo, hi;
    int slot;                 // of its partial result; -1 where it is the whole segment
    int first_slot, sharers;  // where the segment's partial results are, and how many
    bool more;                // the worker has another part

    __device__ __forceinline__ bool exists() const { return index >= 0; }

    // Rows of the sequence from the cluster's first one on.
    __device__ __forceinline__ int rows() const { return q_len * problem::group - first; }

    // Keys that the sequence's query `token` sees end here.
    __device__ __forceinline__ int limit(int token) const {
        return problem::causal ? min(kv_len - q_len + 1 + token, kv_len) : kv_len;
    }
};

// Walks over the parts of one worker; a warp starts it together, one thread goes on.
struct Walk {
    Cuts cuts;
    int worker;
    int index, tile, at;  // the segment that comes next, and where it begins

    __device__ __forceinline__ Walk(const Batch& batch, const Cuts& cuts, int worker) : cuts(cuts), worker(worker) {
        const int begin = cuts.begin(worker);
        const Place place = find(batch, cuts.pieces, begin);
        index = place.index;
        at = place.at;
        tile = 0;
        if (begin < cuts.begin(worker + 1)) {
            const int cost = sequence(batch, index).cost(cuts.pieces);
            tile = (begin - at) / cost;
            at += tile * cost;
        }
    }

    // The next part of this worker, if there is one.
    __device__ __forceinline__ Part next(const Batch& batch) {
        const int begin = cuts.begin(worker), end = cuts.begin(worker + 1);
        while (at < end) {
            const Sequence s = sequence(batch, index);
            if (tile == s.tiles) {
                tile = 0;
                ++index;
                continue;
            }
            const int pieces = cuts.pieces > 0 ? cuts.pieces : s.blocks;  // or every block is one
            const int blocks = at + s.cost(cuts.pieces) - pieces;         // begin there
            const int from = max(begin - blocks, 0) * s.blocks / pieces;
            const int to = max(min(end - blocks, pieces), 0) * s.blocks / pieces;
            const int row = tile * ROWS, slot = 2 * worker + (at >= begin);
            const int first = cuts.owner(blocks), last = cuts.owner(blocks + pieces - 1);
            const int first_slot = 2 * first + (cuts.begin(first) <= at);
            at += s.cost(cuts.pieces);
            ++tile;
            if (from < to)
                return {index, s.q_start * problem::group + row, row, s.q_len, s.kv_len, from, to,
                        first == last ? -1 : slot, first_slot, last - first + 1};
        }
        return {-1};
    }
};
