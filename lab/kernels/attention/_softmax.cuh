// Softmax of one block of scores after another, in the accumulators of wgmma: running maximum and sum of each row.
// Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Dao, "FlashAttention-2" (2023).
#pragma once
#include "ptx/convert.cuh"
#include "ptx/ex2.cuh"
#include "ptx/types.cuh"
#include "schedule.cuh"

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// Element i of a thread's accumulators of a wgmma: which of its two rows, how far from its first column.
__device__ __forceinline__ constexpr int row_of(int i) { return i / 2 % 2; }
__device__ __forceinline__ constexpr int column_of(int i) { return i / 4 * 8 + i % 2; }
__device__ __forceinline__ int first_column() { return threadIdx.x % 4 * 2; }

// Over the four threads that share a row.
template <typename T>
__device__ __forceinline__ T row_max(T value) {
    value = max(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return max(value, __shfl_xor_sync(0xffffffffu, value, 2));
}
__device__ __forceinline__ float row_sum(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

// The largest of a thread's scores of each row, or 0: as integers floats are in order from 0 up, and three of those are
// compared at once.
template <int n>
__device__ __forceinline__ void positive_max(const float (&scores)[n], float (&largest)[2]) {
    int top[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < n; i += 2)
        top[row_of(i)] = __vimax3_s32(top[row_of(i)], __float_as_int(scores[i]), __float_as_int(scores[i + 1]));
#pragma unroll
    for (int r = 0; r < 2; ++r) largest[r] = __int_as_float(top[r]);
}

// The largest score of each row.
template <int n>
__device__ __forceinline__ void row_maxima(const float (&scores)[n], float (&largest)[2]) {
    largest[0] = scores[0], largest[1] = scores[2];
#pragma unroll
    for (int i = 0; i < n; ++i) largest[row_of(i)] = fmaxf(largest[row_of(i)], scores[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) largest[r] = row_max(largest[r]);
}

// Which columns of a block each of a thread's two rows sees, from its first column on: start <= column < end.
struct Visible {
    int start[2], end[2];

    template <int n>
    __device__ __forceinline__ void mask(float (&scores)[n]) const {
#pragma unroll
        for (int i = 0; i < n; ++i) {
            bool seen = column_of(i) < end[row_of(i)];
            if constexpr (problem::window > 0) seen &= column_of(i) >= start[row_of(i)];
            if (!seen) scores[i] = -infinity();
        }
    }
};

// A thread's two rows so far. Weights are 2^(scale score - scale maximum); `scale` carries log2(e).
struct Softmax {
    float scale[2];
    float maximum[2] = {-infinity(), -infinity()};  // of the scores; or, with slack, at most 2^slack below it
    float sum[2] = {0, 0};                      // of the weights in this thread's columns
    float base[2];                              // what is subtracted from scaled scores
    float decay[2];                             // what the last block made of earlier weights
    bool decayed;                               // whether any row of this warp's did

    __device__ __forceinline__ explicit Softmax(float scale) : Softmax(scale, scale) {}
    __device__ __forceinline__ Softmax(float first, float second) : scale{first, second} {}

    // What weights of a block are relative to. Weights up to 2^slack are as good as up to 1: the maximum stays where it is
    // until one is that far off, which each thread sees of its own scores.
    template <int n>
    __device__ __forceinline__ void begin(const float (&scores)[n]) {
        float top[2];
        const float before[2] = {maximum[0], maximum[1]};
        positive_max(scores, top);
        decayed = false;
        if (__any_sync(0xffffffffu, is_above(0, top[0]) | is_above(1, top[1]))) raise(scores);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            base[r] = maximum[r] == -infinity() ? 0 : maximum[r] * scale[r];  // a row that saw nothing yet
            decay[r] = ptx::ex2::approx(before[r] * scale[r] - base[r]);
            sum[r] *= decay[r];
        }
    }

    // Scores `first` to `last` - 1 of a thread to weights.
    template <int first, int last, int n>
    __device__ __forceinline__ void weigh(float (&scores)[n]) {
#pragma unroll
        for (int i = first; i < last; ++i) {
            scores[i] = ptx::ex2::approx(fmaf(scores[i], scale[row_of(i)], -base[row_of(i)]));
            sum[row_of(i)] += scores[i];
        }
    }

    // All scores to weights.
    template <int n>
    __device__ __forceinline__ void take(float (&scores)[n]) {
        begin(scores);
        weigh<0, n>(scores);
    }

    __device__ __forceinline__ bool is_above(int r, float score) const {
        return score * scale[r] > maximum[r] * scale[r] + schedule::slack;
    }

    // New maxima of the rows that need them.
    template <int n>
    __device__ __forceinline__ void raise(const float (&scores)[n]) {
        float largest[2];
        row_maxima(scores, largest);
#pragma unroll
        for (int r = 0; r < 2; ++r)
            if (is_above(r, largest[r])) {
                maximum[r] = largest[r];
                decayed = true;
            }
        decayed = __any_sync(0xffffffffu, decayed);
    }

    // Earlier weighted sums of values, where any row of this warp has decayed.
    template <int n>
    __device__ __forceinline__ void rescale(float (&y)[n]) const {
        if (!decayed) return;
#pragma unroll
        for (int i = 0; i < n; ++i) y[i] *= decay[row_of(i)];
    }

    // Whether rescale has anything to do: known when the weights so far are there, so that what asks comes after them,
    // however instructions are scheduled.
    __device__ __forceinline__ bool rescales() {
        return decayed = __any_sync(0xffffffffu, decayed | (sum[0] + sum[1] < 0));
    }

    // The whole row's sum, after the last block.
    __device__ __forceinline__ float total(int r) const { return row_sum(sum[r]); }

    // log2 of the sum of 2^(scale scores); -inf for a row that saw nothing.
    __device__ __forceinline__ float log_sum(int r, float total) const {
        return total > 0 ? maximum[r] * scale[r] + __log2f(total) : -infinity();
    }
};

// Weights as the fragments of a of the next wgmma: 16 columns a step.
template <typename T, int n>
__device__ __forceinline__ void pack(uint32_t (&a)[n / 8][4], const float (&weights)[n]) {
#pragma unroll
    for (int i = 0; i < n / 2; ++i) a[i / 4][i % 4] = ptx::convert::pair<T>(weights[2 * i], weights[2 * i + 1]);
}
