// The end of a part in decode attention: what the warps of a CTA have summed meets in shared memory, and is the result, or
// a partial one where other stretches share the sequence. Whoever comes last adds the partial ones up, in their order.
#pragma once
#include "lab/kernels/attention/decode_rows.cuh"
#include "ptx/atom.cuh"
#include "ptx/store.cuh"

constexpr int ROWS = EIGHT * TILES * ROW_GROUPS;  // of q that share a KV head, at most
constexpr int FOUR = EIGHT / 2;                   // rows that meet in shared memory at once
constexpr int PITCH = DIM + 4;                    // floats: from row to row in shared memory
constexpr int OWN = DIM / LANES;                  // elements of a row that a lane adds up
constexpr int AT_ONCE = 16;                       // partial results whose loads are under way together
using Own = Vector<4 * OWN>;

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

// Shared by the warps of a CTA.
struct Merge {
    float o[schedule::warps][FOUR][PITCH];
    float base[schedule::warps][FOUR], sum[schedule::warps][FOUR];
    bool last;
};

// A warp's sums of one half of tile n to shared memory.
__device__ __forceinline__ void leave(Merge& merge, const Softmax& s, int n, int half) {
    const int warp = warp_index(), g = threadIdx.x % LANES / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = 2 * t % FOUR + i;
        float sum = s.sum[n][i];
#pragma unroll
        for (int offset = 4; offset < LANES; offset *= 2) sum += __shfl_xor_sync(FULL, sum, offset);
        if (2 * t / FOUR != half) continue;
        if (g == 0) merge.base[warp][row] = s.base[n][i], merge.sum[warp][row] = sum;
#pragma unroll
        for (int h = 0; h < STEPS; ++h)
#pragma unroll
            for (int j = 0; j < 2; ++j) merge.o[warp][row][column_of(h, j)] = s.o[h][n][i + 2 * j];
    }
}

__device__ __forceinline__ void add(Row& to, const Own& from, float weight) {
#pragma unroll
    for (int i = 0; i < OWN; ++i) to.total[i] = fmaf(__uint_as_float(from.words[i]), weight, to.total[i]);
}

// A row of a KV head from what the teams of this head left.
__device__ __forceinline__ Row gather(const Merge& merge, int head, int row_group, int row) {
    Row r = {unseen()};
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot)
        r.base = fmaxf(r.base, merge.base[(slot * HEADS + head) * ROW_GROUPS + row_group][row]);
#pragma unroll 4
    for (int slot = 0; slot < SLOTS; ++slot) {
        const int warp = (slot * HEADS + head) * ROW_GROUPS + row_group;
        const float weight = power_of_two(merge.base[warp][row] - r.base);
        r.sum = fmaf(merge.sum[warp][row], weight, r.sum);
        add(r, *reinterpret_cast<const Own*>(&merge.o[warp][row][threadIdx.x % LANES * OWN]), weight);
    }
    return r;
}

// A row of a KV head from the partial results of `count` stretches from `first` on; all loads of AT_ONCE under way before
// the first is waited for.
__device__ __forceinline__ Row combine(const Results& results, int first, int count, int index, int head, int row) {
    const int lane = threadIdx.x % LANES, step = results.kv_heads * ROWS;
    const int64_t at = results.row(first, index, head, row);
    const float2* sums = results.partial_sums + at + int64_t(lane) * step;
    const float* from = results.partial + at * DIM + lane * OWN;
    Row r = {unseen()};
#pragma unroll 1
    for (int done = 0; done < count; done += AT_ONCE) {
        const float2 pair = lane < AT_ONCE && done + lane < count ? sums[int64_t(done) * step] : float2{unseen(), 0};
        Own own[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            own[i] = done + i < count ? *reinterpret_cast<const Own*>(from) : Own{};
            from += int64_t(step) * DIM;
        }
        float base = fmaxf(pair.x, r.base);
#pragma unroll
        for (int offset = 1; offset < LANES; offset *= 2) base = fmaxf(base, __shfl_xor_sync(FULL, base, offset));
        const float before = power_of_two(r.base - base), weight = power_of_two(pair.x - base);
        r.base = base;
        r.sum = fmaf(pair.y, weight, r.sum * before);
#pragma unroll
        for (int i = 0; i < OWN; ++i) r.total[i] *= before;
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) add(r, own[i], __shfl_sync(FULL, weight, i));
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

// All warps of the CTA end a part of a stretch together; the first KV head of the CTA is `first_head`.
__device__ __forceinline__ void finish(Merge& merge, const Softmax& softmax, const Part& part, int stretch, int length,
                                       int first_head, const Results& results) {
    const int warp = warp_index(), rows = part.sequence.q_len * problem::group;
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
#pragma unroll 1
        for (int half = 0; half < 2 && n * EIGHT + half * FOUR < rows; ++half) {
            __syncthreads();  // what was left before has been read
            leave(merge, softmax, n, half);
            __syncthreads();
            for (int job = warp; job < HEADS * ROW_GROUPS * FOUR; job += schedule::warps) {
                const int head = job % HEADS, row_group = job / HEADS % ROW_GROUPS, own = job / (HEADS * ROW_GROUPS);
                const int row = (row_group * TILES + n) * EIGHT + half * FOUR + own;
                if (row >= rows) continue;
                const Row r = gather(merge, head, row_group, own);
                if (part.whole())
                    store_result(results, r, part.sequence, first_head + head, row);
                else
                    store_partial(results, r, results.row(stretch, part.index, first_head + head, row));
            }
        }
    }
    if (part.whole()) return;

    const int first = part.first_stretch(length), last = part.last_stretch(length);
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t* arrivals = results.arrivals + (part.index * results.kv_heads + first_head) / HEADS;
        merge.last = ptx::atom::count(arrivals, last - first) == last - first;
    }
    __syncthreads();
    if (!merge.last) return;
    for (int job = warp; job < HEADS * rows; job += schedule::warps) {
        const int head = first_head + job % HEADS, row = job / HEADS;
        store_result(results, combine(results, first, last - first + 1, part.index, head, row), part.sequence, head, row);
    }
}
