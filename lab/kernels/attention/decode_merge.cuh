// The end of a part in decode attention: what the warps of a CTA have summed meets in shared memory, and is the result, or
// a partial one where other stretches share the sequence. Partial ones lie in global memory, where whoever comes last adds
// them up, in their order. Of a cluster, whose CTAs are all stretches of the only sequence, each adds up some rows: the
// others send them to its shared memory.
#pragma once
#include "lab/kernels/attention/decode_warpgroup.cuh"
#include "ptx/atom.cuh"
#include "ptx/cluster.cuh"
#include "ptx/fence.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/store.cuh"

constexpr int ROWS = MMA_N * TILES * ROW_GROUPS;  // of q that share a KV head, at most
constexpr int HELD = schedule::held_rows;         // of a warp, that meet in shared memory at once
constexpr int PITCH = DIM + schedule::row_pad;    // floats: from row to row in shared memory
constexpr int OWN = DIM / LANES;                  // elements of a row that a lane adds up
constexpr bool CLUSTER = schedule::cluster > 1;
constexpr int AT_ONCE = CLUSTER ? schedule::cluster : 16;  // partial results whose loads are under way together
using Own = Vector<4 * OWN>;

static_assert(AT_ONCE <= LANES && (!CLUSTER || HEADS == 1), "rows of one KV head, from all at once");
static_assert(schedule::inbox_rows >= (CLUSTER ? ROWS + schedule::cluster - 1 : 1), "a row has its place");

// Where the results go.
struct Results {
    Activation* y;
    float *lse, *partial;  // lse may be absent
    float2* partial_sums;
    uint32_t* arrivals;    // for each sequence and CTA of a stretch
    const float* v_scale;  // of each KV head, where the cache is fp8
    int kv_heads;

    // Of a partial result: that of a stretch and a sequence, of which either differs from one to the next.
    __device__ __forceinline__ int64_t row(int stretch, int index, int head, int row) const {
        return (int64_t(stretch + index) * kv_heads + head) * ROWS + row;
    }
};

// One row of the result, of which a lane has OWN elements: relative to 2^base, and the sum of weights.
struct Row {
    float base, sum, total[OWN];
};

// What warps have summed, for those of their CTA.
struct Sums {
    float o[schedule::warps][HELD][PITCH];
    float base[schedule::warps][HELD], sum[schedule::warps][HELD];
};

// What other CTAs leave to this one.
struct Merge {
    float inbox[schedule::inbox_rows][DIM];  // partial results from the cluster, those of a row side by side
    float2 inbox_sums[schedule::inbox_rows];
    uint64_t arrived;  // one arrival, and the bytes of the inbox
    bool last;  // to come; or whether this CTA adds up rows
};

// A warp's sums of rows `first` to `first + HELD - 1` to shared memory.
__device__ __forceinline__ void leave(Sums& sums, const Softmax& s, int first) {
    const int warp = warp_index(), g = threadIdx.x % LANES / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < TILES; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = n * MMA_N + 2 * t + i - first;
            float sum = s.sum[n][i];
#pragma unroll
            for (int offset = 4; offset < LANES; offset *= 2) sum += __shfl_xor_sync(FULL, sum, offset);
            if (row < 0 || row >= HELD) continue;
            if (g == 0) sums.base[warp][row] = s.base[n][i], sums.sum[warp][row] = sum;
#pragma unroll
            for (int h = 0; h < STEPS; ++h)
#pragma unroll
                for (int j = 0; j < 2; ++j) sums.o[warp][row][column_of(h, j)] = s.o[h][n][i + 2 * j];
        }
}

__device__ __forceinline__ void leave(Sums& sums, const WarpgroupSoftmax& s, int first) {
    const int warp = warp_index(), g = threadIdx.x % LANES / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row = g + 8 * r - first;
        float sum = s.sum[r] + __shfl_xor_sync(FULL, s.sum[r], 1);
        sum += __shfl_xor_sync(FULL, sum, 2);
        if (row < 0 || row >= HELD) continue;
        if (t == 0) sums.base[warp][row] = s.base[r], sums.sum[warp][row] = sum;
#pragma unroll
        for (int i = 2 * r; i < DIM / 2; i += 4)
            *reinterpret_cast<float2*>(&sums.o[warp][row][distance_of(i) + 2 * t]) = {s.o[i], s.o[i + 1]};
    }
}

__device__ __forceinline__ void add(Row& to, const Own& from, float weight) {
#pragma unroll
    for (int i = 0; i < OWN; ++i) to.total[i] = fmaf(__uint_as_float(from.words[i]), weight, to.total[i]);
}

// A row of a KV head from what the teams of this head left.
__device__ __forceinline__ Row gather(const Sums& sums, int head, int row_group, int row) {
    Row r = {unseen()};
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot)
        r.base = fmaxf(r.base, sums.base[(slot * HEADS + head) * ROW_GROUPS + row_group][row]);
#pragma unroll 4
    for (int slot = 0; slot < SLOTS; ++slot) {
        const int warp = (slot * HEADS + head) * ROW_GROUPS + row_group;
        const float weight = power_of_two(sums.base[warp][row] - r.base);
        r.sum = fmaf(sums.sum[warp][row], weight, r.sum);
        add(r, *reinterpret_cast<const Own*>(&sums.o[warp][row][threadIdx.x % LANES * OWN]), weight);
    }
    return r;
}

// A row from `count` partial results: `pairs(i)` are exponent and sum of weights of one, `own(i)` this lane's elements. All
// loads of AT_ONCE are under way before the first is waited for.
template <typename Pairs, typename Elements>
__device__ __forceinline__ Row combine(int count, Pairs pairs, Elements own) {
    const int lane = threadIdx.x % LANES;
    Row r = {unseen()};
#pragma unroll 1
    for (int done = 0; done < count; done += AT_ONCE) {
        const float2 pair = lane < AT_ONCE && done + lane < count ? pairs(done + lane) : float2{unseen(), 0};
        Own part[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) part[i] = done + i < count ? own(done + i) : Own{};
        float base = fmaxf(pair.x, r.base);
#pragma unroll
        for (int offset = 1; offset < LANES; offset *= 2) base = fmaxf(base, __shfl_xor_sync(FULL, base, offset));
        const float before = power_of_two(r.base - base), weight = power_of_two(pair.x - base);
        r.base = base;
        r.sum = fmaf(pair.y, weight, r.sum * before);
#pragma unroll
        for (int i = 0; i < OWN; ++i) r.total[i] *= before;
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) add(r, part[i], __shfl_sync(FULL, weight, i));
    }
#pragma unroll
    for (int offset = 1; offset < LANES; offset *= 2) r.sum += __shfl_xor_sync(FULL, r.sum, offset);
    return r;
}

__device__ __forceinline__ void store_result(const Results& results, const Row& r, const Sequence& sequence, int head,
                                             int row) {
    const int lane = threadIdx.x % LANES;
    const float inverse = (r.sum > 0 ? 1 / r.sum : 0) * (FP8 ? results.v_scale[head] : 1);
    const int64_t token = sequence.q_start + row / problem::group;
    const int64_t at = (token * results.kv_heads + head) * problem::group + row % problem::group;
    Vector<2 * OWN> pairs;
#pragma unroll
    for (int i = 0; i < OWN; i += 2)
        pairs.words[i / 2] = ptx::convert::pair<Activation>(r.total[i] * inverse, r.total[i + 1] * inverse);
    ptx::store::global<2 * OWN>(results.y + at * DIM + lane * OWN, pairs);
    if (problem::lse && lane == 0) results.lse[at] = r.sum > 0 ? (r.base + __log2f(r.sum)) * LN_2 : unseen();
}

__device__ __forceinline__ void store_partial(const Results& results, const Row& r, int64_t at) {
    const int lane = threadIdx.x % LANES;
    Own own;
#pragma unroll
    for (int i = 0; i < OWN; ++i) own.words[i] = __float_as_uint(r.total[i]);
    ptx::store::global<4 * OWN>(results.partial + at * DIM + lane * OWN, own);
    if (lane == 0) results.partial_sums[at] = {r.base, r.sum};
}

// The CTAs that share a sequence: the ranks `first` to `first + count - 1` of a cluster, or stretches.
struct Sharers {
    int first, count;

    __device__ __forceinline__ Sharers(const Part& part, int length)
        : first(part.first_stretch(length)), count(part.last_stretch(length) - first + 1) {}
};

// Before any CTA of the cluster may send; all threads.
__device__ __forceinline__ void begin_cluster(Merge& merge) {
    if (threadIdx.x == 0) {
        ptx::mbarrier::init(merge.arrived, 1);
        ptx::fence::mbarrier_init();
    }
    __syncwarp();
    ptx::cluster::arrive_relaxed();
}

// A row of this CTA of rank `rank` to the one that adds it up.
__device__ __forceinline__ void send(Merge& merge, const Row& r, const Sharers& sharers, int rank, int row) {
    const int lane = threadIdx.x % LANES, owner = sharers.first + row % sharers.count;
    const int at = row / sharers.count * sharers.count + rank - sharers.first;
    const uint32_t arrived = ptx::address::shared_of_cta(&merge.arrived, owner);
    const auto to = [&](const float& place) { return ptx::address::shared_of_cta(&place, owner); };
    static_assert(OWN == 2 || OWN == 4, "a row of 64 or 128 elements");
    if constexpr (OWN == 4)
        ptx::store::async_cluster(to(merge.inbox[at][lane * OWN]), r.total, arrived);
    else
        for (int i = 0; i < OWN; ++i) ptx::store::async_cluster(to(merge.inbox[at][lane * OWN + i]), r.total[i], arrived);
    if (lane > 0) return;
    ptx::store::async_cluster(to(merge.inbox_sums[at].x), r.base, arrived);
    ptx::store::async_cluster(to(merge.inbox_sums[at].y), r.sum, arrived);
}

// The rows that this CTA adds up.
__device__ __forceinline__ void receive(Merge& merge, const Sharers& sharers, int rank, const Sequence& sequence,
                                        int head, const Results& results) {
    const int rows = sequence.q_len * problem::group, place = rank - sharers.first, count = sharers.count;
    const int own = (rows - place + count - 1) / count;
    if (own <= 0) return;
    if (threadIdx.x == 0) ptx::mbarrier::arrive_expect_tx(merge.arrived, own * count * (DIM + 2) * sizeof(float));
    __syncwarp();
    ptx::mbarrier::wait_cluster(merge.arrived, 0);
    for (int i = warp_index(); i < own; i += schedule::warps) {
        const auto pairs = [&](int of) { return merge.inbox_sums[i * count + of]; };
        const auto elements = [&](int of) {
            return *reinterpret_cast<const Own*>(&merge.inbox[i * count + of][threadIdx.x % LANES * OWN]);
        };
        store_result(results, combine(count, pairs, elements), sequence, head, i * count + place);
    }
}

// All warps of the CTA end a part of a stretch together; the first KV head of the CTA is `first_head`.
__device__ __forceinline__ void finish(Merge& merge, Sums& sums, const OwnSoftmax& softmax, const Part& part,
                                       const Sharers& sharers, int stretch, int first_head, const Results& results) {
    const int warp = warp_index(), rows = part.sequence.q_len * problem::group;
#pragma unroll 1
    for (int first = 0; first < TILES * MMA_N && first < rows; first += HELD) {
        __syncthreads();  // what was left there before has been read
        leave(sums, softmax, first);
        __syncthreads();
        for (int job = warp; job < HEADS * ROW_GROUPS * HELD; job += schedule::warps) {
            const int head = job % HEADS, row_group = job / HEADS % ROW_GROUPS, own = job / (HEADS * ROW_GROUPS);
            const int row = row_group * TILES * MMA_N + first + own;
            if (row >= rows) continue;
            const Row r = gather(sums, head, row_group, own);
            if (part.whole())
                store_result(results, r, part.sequence, first_head + head, row);
            else if constexpr (CLUSTER)
                send(merge, r, sharers, stretch, row);
            else
                store_partial(results, r, results.row(stretch, part.index, first_head + head, row));
        }
    }
    if (part.whole()) return;
    if constexpr (CLUSTER) {
        receive(merge, sharers, stretch, part.sequence, first_head, results);
        return;
    }
    // Who comes last adds up all rows; or each of the first `owners`, when all have come, some of them.
    const int owners = schedule::spread ? min(sharers.count, rows) : 1;
    const int own = schedule::spread ? stretch - sharers.first : 0;
    uint32_t* arrivals = results.arrivals + (part.index * results.kv_heads + first_head) / HEADS;
    const uint32_t last = sharers.count - 1 + (schedule::spread ? owners : 0);
    __syncthreads();
    if (threadIdx.x == 0) {
        if constexpr (schedule::spread) {
            ptx::atom::count_released(arrivals, last);
            merge.last = own < owners;
            if (merge.last)
                while (ptx::load::acquire(arrivals) < sharers.count) {}
        } else {
            merge.last = ptx::atom::count(arrivals, last) == last;
        }
    }
    __syncthreads();
    if (!merge.last) return;
    const int step = results.kv_heads * ROWS;
    for (int job = warp; job < HEADS * ((rows - own + owners - 1) / owners); job += schedule::warps) {
        const int head = first_head + job % HEADS, row = own + job / HEADS * owners;
        const int64_t at = results.row(sharers.first, part.index, head, row);
        const auto pairs = [&](int i) { return results.partial_sums[at + int64_t(i) * step]; };
        const auto elements = [&](int i) {
            const float* from = results.partial + (at + int64_t(i) * step) * DIM;
            return *reinterpret_cast<const Own*>(from + threadIdx.x % LANES * OWN);
        };
        store_result(results, combine(sharers.count, pairs, elements), part.sequence, head, row);
    }
    if constexpr (schedule::spread) {  // the last one to have read leaves the counter at 0
        __syncthreads();
        if (threadIdx.x == 0) ptx::atom::count_relaxed(arrivals, last);
    }
}
