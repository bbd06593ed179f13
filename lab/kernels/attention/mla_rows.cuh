// Rows of a warpgroup's accumulators: whose they are, their running maximum and sum, where their results go.
#pragma once
#include "lab/kernels/attention/_softmax.cuh"
#include "lab/kernels/attention/mla_stream.cuh"
#include "ptx/ex2.cuh"
#include "ptx/thread.cuh"

constexpr int VALUES_WARPGROUPS = 2;
constexpr int BOX_STEPS = BOX_COLUMNS / MMA_K;
constexpr int STEPS = BLOCK_N / MMA_K;
constexpr float LOG2_E = 1.4426950408889634f;

using Scores = float[BLOCK_N / 2];

// A row's running maximum and sum. Weights are 2^(scale score - maximum). A maximum moves by whole powers of two, so
// that what it makes of earlier sums is exact, and a byte says it.
struct PowerSoftmax {
    float maximum[2] = {-infinity(), -infinity()};
    float sum[2] = {0, 0};  // of the weights in this thread's columns

    // Scores to weights; returns of each row how many powers of two smaller earlier sums become.
    __device__ __forceinline__ void take(Scores& scores, float scale, uint32_t (&powers)[2]) {
        float largest[2] = {scores[0], scores[2]};
#pragma unroll
        for (int i = 0; i < BLOCK_N / 2; ++i) largest[row_of(i)] = fmaxf(largest[row_of(i)], scores[i]);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float now = row_max(largest[r]) * scale;
            float steps = 0;
            // Weights up to 2^slack are as good as up to 1: the maximum stays where it is until it is that far off.
            if (now > maximum[r] + schedule::slack) {
                steps = fminf(ceilf(now - maximum[r]), NONE_LEFT);
                maximum[r] = steps < NONE_LEFT ? maximum[r] + steps : now;
            }
            powers[r] = uint32_t(steps);
            sum[r] *= power(powers[r]);
            const float base = maximum[r] == -infinity() ? 0 : maximum[r];  // a row that saw nothing yet
#pragma unroll
            for (int i = 0; i < BLOCK_N / 2; ++i) {
                if (row_of(i) != r) continue;
                scores[i] = ptx::ex2::approx(fmaf(scores[i], scale, -base));
                sum[r] += scores[i];
            }
        }
    }

    static constexpr float NONE_LEFT = 127;
    static constexpr float BEYOND_ALL = 1e30f;  // a maximum relative to which all weights are 0

    // 2^-steps, or 0.
    static __device__ __forceinline__ float power(uint32_t steps) { return __uint_as_float((127 - steps) << 23); }

    // The natural logarithm of the sum of exponentials.
    __device__ __forceinline__ float log_sum_exp(int r, float total) const {
        constexpr float LN_2 = 0.6931471805599453f;
        return total > 0 ? (maximum[r] + __log2f(total)) * LN_2 : -infinity();
    }
};

// Where results go: y and lse, or partial results of rows that several workers share.
struct Results {
    Element* y;
    float *lse, *partial, *partial_lse;
    uint32_t* arrivals;  // of who has left partial results: of each sequence, each of its tiles, each CTA of a cluster
    int max_tiles;       // of a sequence
    int rank;            // in the cluster

    // Row `row` of this CTA's tile in the partial results.
    __device__ __forceinline__ int64_t partial_row(int slot, int row) const {
        return int64_t(slot) * ROWS + rank * BLOCK_M + row;
    }
};

// This thread's place in its warpgroup, found anew: registers are too few to keep it.
struct Lane {
    const int thread = ptx::thread::index() % WARPGROUP, warp = thread / WARP, index = thread % WARP;

    // Its rows of accumulators, r = 0 and 1.
    __device__ __forceinline__ int row(int r) const { return warp * 16 + index / 4 + 8 * r; }
};
