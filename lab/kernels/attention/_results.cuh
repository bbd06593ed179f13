// What a warp does with its 16 rows of a tile beside products: which keys they see, and what it stores of them, which is
// rows of y, normalised, and their log-sum-exp; merged where the keys are split.
#pragma once
#include "lab/kernels/attention/_softmax.cuh"
#include "lab/kernels/attention/_work.cuh"

using Output = problem::output;  // element of y

// What a thread sees of the block that starts at `key`; `row` is its first.
__device__ __forceinline__ Visible visible(const Work& work, int row, int key) {
    Visible seen;
    key += first_column();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int token = (row + 8 * r) / problem::group;
        seen.start[r] = work.start(token) - key;
        seen.end[r] = work.end(token) - key;
    }
    return seen;
}

// The parts of a split tile: rows of y, normalised, and the logarithms to base 2 of their sums, for the last part to merge.
// Dao et al., "Flash-Decoding for long-context inference" (2023).
struct Parts {
    float *y, *log_sums;
    uint32_t* arrived;  // of each warp's rows, how many parts; 0 again after the last

    // Whether a work is one of several parts, which a schedule without splits need not ask.
    static __device__ __forceinline__ bool are(const Work& work) { return schedule::splits > 1 && work.parts > 1; }

    static __device__ __forceinline__ int64_t row(const Work& work, int part, int row) {
        return (int64_t(work.tile) * schedule::splits + part) * schedule::block_m + row;
    }

    // Whether this part is the last of a warp's rows, so that all parts of them can be read.
    __device__ __forceinline__ bool last(const Work& work, int first) const {
        __threadfence();
        __syncwarp();
        uint32_t before = 0;
        if (threadIdx.x % WARP == 0)
            before = atomicInc(&arrived[work.tile * (schedule::block_m / 16) + first / 16], schedule::splits - 1);
        before = __shfl_sync(0xffffffffu, before, 0);
        __threadfence();
        return before == schedule::splits - 1;
    }
};

struct Results {
    Output* y;
    float* lse;
    int kv_heads;
    Parts parts;

    // Where row `row` of a tile goes, in rows of head_dim; or -1.
    __device__ __forceinline__ int64_t place(const Work& work, int row) const {
        const int token = row / problem::group;
        if (row >= ROWS || token >= work.tokens) return -1;
        return (int64_t(work.query + token) * kv_heads + work.head) * problem::group + row % problem::group;
    }

    // Four elements of a row from `column` on, and with the first of them the log-sum-exp.
    __device__ __forceinline__ void store_four(int64_t to, int column, const float4& four, float log_sum) const {
        constexpr float LN_2 = 0.6931471805599453f;
        if (to < 0) return;
        const uint2 pairs = {ptx::convert::pair<Output>(four.x, four.y), ptx::convert::pair<Output>(four.z, four.w)};
        *reinterpret_cast<uint2*>(&y[to * problem::head_dim + column]) = pairs;
        if constexpr (problem::lse)
            if (column == 0) lse[to] = log_sum * LN_2;
    }

    // The parts of 16 rows, from row `first` on, in their order. Two lanes have the weights of a row's parts, even and odd
    // ones; then rows come side by side, so that few of many loads are waited for.
    __device__ __forceinline__ void merge(const Work& work, int first) const {
        constexpr int FOURS = problem::head_dim / 4;  // of a row
        constexpr int PAIRS = (schedule::splits + 1) / 2;
        const int lane = threadIdx.x % WARP, odd = lane / 16;
        float weights[PAIRS], largest = -infinity(), total = 0;
#pragma unroll
        for (int i = 0; i < PAIRS; ++i) {
            const int part = 2 * i + odd;
            weights[i] = -infinity();
            if (part < schedule::splits) weights[i] = __ldcg(&parts.log_sums[Parts::row(work, part, first + lane % 16)]);
            largest = fmaxf(largest, weights[i]);
        }
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 16));
#pragma unroll
        for (int i = 0; i < PAIRS; ++i) {
            const float weight = ptx::ex2::approx(weights[i] - (largest == -infinity() ? 0 : largest));
            weights[i] = weights[i] == -infinity() ? -1 : weight;  // -1: it has stored no y
            total += fmaxf(weights[i], 0);
        }
        total += __shfl_xor_sync(0xffffffffu, total, 16);
        const float log_sum = total > 0 ? largest + __log2f(total) : -infinity();
        const float inverse = total > 0 ? __fdividef(1, total) : 0;
#pragma unroll 4
        for (int i = 0; i < 16 * FOURS; i += WARP) {  // the same for all lanes, which wgmma asks for
            const int row = (i + lane) / FOURS, column = (i + lane) % FOURS * 4;
            const int64_t to = place(work, first + row);
            float4 sum = {};
#pragma unroll
            for (int part = 0; part < schedule::splits; ++part) {
                const float weight = __shfl_sync(0xffffffffu, weights[part / 2], part % 2 * 16 + row);
                if (to < 0 || weight < 0) continue;
                const float* from = &parts.y[Parts::row(work, part, first + row) * problem::head_dim + column];
                const float4 y = __ldcg(reinterpret_cast<const float4*>(from));
                sum.x += weight * y.x, sum.y += weight * y.y, sum.z += weight * y.z, sum.w += weight * y.w;
            }
            const float scale = __shfl_sync(0xffffffffu, inverse, row);
            const float4 mean = {sum.x * scale, sum.y * scale, sum.z * scale, sum.w * scale};
            store_four(to, column, mean, __shfl_sync(0xffffffffu, log_sum, row));
        }
    }

    // Of 16 rows that see no key of the work: 0 and -inf.
    __device__ __forceinline__ void store_nothing(const Work& work, int first) const {
        const int lane = threadIdx.x % WARP;
        if (Parts::are(work)) {
            if (lane < 16) parts.log_sums[Parts::row(work, work.part, first + lane)] = -infinity();
            if (parts.last(work, first)) merge(work, first);
        } else {
            constexpr int FOURS = problem::head_dim / 4;
            for (int i = lane; i < 16 * FOURS; i += WARP)
                store_four(place(work, first + i / FOURS), i % FOURS * 4, {}, -infinity());
        }
    }

    // 16 rows of a warp from row `first` of the tile on.
    __device__ __forceinline__ void store(const float (&values)[problem::head_dim / 2], const Softmax& softmax,
                                          const Work& work, int first) const {
        if (!Parts::are(work)) return store_rows<false>(values, softmax, work, first);
        store_rows<true>(values, softmax, work, first);
        if (parts.last(work, first)) merge(work, first);
    }

    // Lanes trade pairs with their neighbours: each then has four elements side by side, and the four lanes of a row 32
    // bytes.
    template <bool part>
    __device__ __forceinline__ void store_rows(const float (&values)[problem::head_dim / 2], const Softmax& softmax,
                                               const Work& work, int first) const {
        const int lane = threadIdx.x % WARP, odd = lane % 2;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int row = first + lane / 4 + 8 * r;
            const float total = softmax.total(r), inverse = total > 0 ? __fdividef(1, total) : 0;
            const float log_sum = softmax.log_sum(r, total);
            const int64_t to = part ? Parts::row(work, work.part, row) : place(work, row);
            if (part && lane % 4 == 0) parts.log_sums[to] = log_sum;
#pragma unroll
            for (int i = 2 * r; i < problem::head_dim / 2; i += 8) {
                const float2 here = {values[i] * inverse, values[i + 1] * inverse};
                const float2 next = {values[i + 4] * inverse, values[i + 5] * inverse};  // eight columns further
                const float2 mine = odd ? next : here, theirs = odd ? here : next;
                const float2 got = {__shfl_xor_sync(0xffffffffu, theirs.x, 1), __shfl_xor_sync(0xffffffffu, theirs.y, 1)};
                const float4 four = odd ? float4{got.x, got.y, mine.x, mine.y} : float4{mine.x, mine.y, got.x, got.y};
                const int column = column_of(i) + 8 * odd + lane % 4 / 2 * 4;
                if constexpr (part)
                    __stcg(reinterpret_cast<float4*>(&parts.y[to * problem::head_dim + column]), four);
                else
                    store_four(to, column, four, log_sum);
            }
        }
    }
};
