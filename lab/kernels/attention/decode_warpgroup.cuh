// Many queries of decode attention, by wgmma: a team is a warpgroup, whose 64 rows of A are the queries that share a KV
// head, and reads each key and each value once for all of them. Four warps by mma.sync read them four times.
#pragma once
#include "lab/kernels/attention/decode_rows.cuh"
#include "ptx/fence.cuh"
#include "ptx/wgmma.cuh"

constexpr int BLOCKS = UNIT / 16;  // of 16 tokens in a unit

static_assert(!WARPGROUP || (ROW_GROUPS == 4 && TILES == 2 && !FP8 && STAGES > 2), "four warps of 16 rows");

// What a thread has of its two rows, r = 0 and 1: g and g + 8 of its warp's.
struct WarpgroupSoftmax {
    float base[2], sum[2];  // exponents, and sums over this thread's columns alone
    float o[DIM / 2];
};
using WarpgroupQueries = uint32_t[STEPS][4];

// By which instructions the queries of this schedule are multiplied.
template <bool warpgroup>
struct Kind {
    using OwnQueries = Queries;
    using OwnSoftmax = Softmax;
};
template <>
struct Kind<true> {
    using OwnQueries = WarpgroupQueries;
    using OwnSoftmax = WarpgroupSoftmax;
};
using OwnQueries = Kind<WARPGROUP>::OwnQueries;
using OwnSoftmax = Kind<WARPGROUP>::OwnSoftmax;

// Element i of accumulators: which of the thread's rows, and how far from its first column, 2 t.
__device__ __forceinline__ constexpr int row_of(int i) { return i / 2 % 2; }
__device__ __forceinline__ constexpr int distance_of(int i) { return i / 4 * 8 + i % 2; }

// Fragments of A: registers 0 and 1 are rows g and g + 8, 2 and 3 the same eight columns further on.
__device__ __forceinline__ void load_queries(WarpgroupQueries& queries, const Activation* q, const Sequence& sequence,
                                             int head, int q_heads, int first_row) {
    const int g = threadIdx.x % LANES / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row = first_row + g + 8 * r;
        const bool inside = row < sequence.q_len * problem::group;
        const int64_t at =
            int64_t(sequence.q_start + row / problem::group) * q_heads + head * problem::group + row % problem::group;
        const Activation* from = q + at * DIM + 2 * t;
#pragma unroll
        for (int s = 0; s < STEPS; ++s)
#pragma unroll
            for (int i = 0; i < 2; ++i) queries[s][r + 2 * i] = ptx::load::cached_4_if(from + 16 * s + 8 * i, inside);
    }
}

__device__ __forceinline__ void clear(WarpgroupSoftmax& s) {
#pragma unroll
    for (int r = 0; r < 2; ++r) s.base[r] = unseen(), s.sum[r] = 0;
#pragma unroll
    for (int i = 0; i < DIM / 2; ++i) s.o[i] = 0;
}

using WarpgroupScores = float[UNIT / 2];

__device__ __forceinline__ void mask(WarpgroupScores& scores, const Part& part, int unit, int first_row) {
    const int g = threadIdx.x % LANES / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int limit = part.first_limit() + (problem::causal ? (first_row + g + 8 * r) / problem::group : 0);
        const int first = unit * UNIT + 2 * t, end = min(limit, part.sequence.kv_len);
#pragma unroll
        for (int i = 0; i < UNIT / 2; ++i)
            if (row_of(i) == r && (first + distance_of(i) >= end ||
                                   (problem::window > 0 && first + distance_of(i) < limit - problem::window)))
                scores[i] = unseen();
    }
}

// New bases, from the largest scores of all lanes: what was summed before is scaled to them.
__device__ __forceinline__ void rescale(WarpgroupSoftmax& s, const float (&largest)[2]) {
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float now = fmaxf(largest[r], __shfl_xor_sync(FULL, largest[r], 1));
        now = fmaxf(now, __shfl_xor_sync(FULL, now, 2));
        now = fmaxf(ceilf(now), s.base[r]);
        factor[r] = power_of_two(s.base[r] - now);
        s.base[r] = now;
        s.sum[r] *= factor[r];
    }
#pragma unroll
    for (int i = 0; i < DIM / 2; ++i) s.o[i] *= factor[row_of(i)];
}

// Bases that no weight of these scores exceeds by far. No product may be under way.
__device__ __forceinline__ void raise(WarpgroupSoftmax& s, const WarpgroupScores& scores, float scale_log2) {
    float largest[2] = {scores[0], scores[2]};
#pragma unroll
    for (int i = 0; i < UNIT / 2; ++i) largest[row_of(i)] = fmaxf(largest[row_of(i)], scores[i]);
    bool grows = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        largest[r] = fmaf(largest[r], scale_log2, -HEADROOM);
        grows |= largest[r] > s.base[r] + SLACK;
    }
    if (__any_sync(FULL, grows)) rescale(s, largest);
}

// Scores to weights.
__device__ __forceinline__ void weigh(WarpgroupSoftmax& s, WarpgroupScores& scores, float scale_log2) {
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) base[r] = s.base[r] == unseen() ? 0 : s.base[r];  // -inf less -inf is no number
#pragma unroll
    for (int i = 0; i < UNIT / 2; ++i) {
        scores[i] = ptx::ex2::approx(fmaf(scores[i], scale_log2, -base[row_of(i)]));
        s.sum[row_of(i)] += scores[i];
    }
}

// Of units on their way all but `ahead` are there for wgmma, whatever its team's warps copied; and all these have left what
// they multiplied before.
template <int ahead>
__device__ __forceinline__ void await(const Team& team) {
    ptx::cp_async::wait_group<ahead>();
    ptx::fence::proxy_async_shared();
    team.sync();
}

// Scores of a unit, on their way.
__device__ __forceinline__ void multiply_k(WarpgroupScores& scores, const Stage& stage, const WarpgroupQueries& queries) {
    constexpr int PANEL_STEPS = PITCH_BYTES / 32, MMA_BYTES = 32;
    ptx::wgmma::fence();
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        const uint64_t keys = ptx::wgmma::descriptor_k_major_128b(stage.bytes + s / PANEL_STEPS * PANEL_BYTES);
        ptx::wgmma::mma<Operand>(scores, queries[s], ptx::wgmma::advance(keys, s % PANEL_STEPS * MMA_BYTES), s > 0);
    }
    ptx::wgmma::commit_group();
}

// O += P V of a unit, on its way.
__device__ __forceinline__ void multiply_v(WarpgroupSoftmax& softmax, const Stage& stage, const WarpgroupScores& p) {
    uint32_t weights[BLOCKS][4];
#pragma unroll
    for (int i = 0; i < UNIT / 4; ++i) weights[i / 4][i % 4] = ptx::convert::pair<Operand>(p[2 * i], p[2 * i + 1]);
    ptx::wgmma::hold(weights);
    ptx::wgmma::fence();
    const uint64_t values = ptx::wgmma::descriptor_n_major_128b(stage.bytes + HALF, PANEL_BYTES);
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block)
        ptx::wgmma::mma_n_major<Operand>(softmax.o, weights[block],
                                         ptx::wgmma::advance(values, block * 16 * PITCH_BYTES), true);
    ptx::wgmma::commit_group();
}

// As of a warp: scores of the next unit are made under the softmax of each.
__device__ __forceinline__ void add_part(WarpgroupSoftmax& softmax, Source& source, Stage (&ring)[STAGES], int& stage,
                                         int& missing, const WarpgroupQueries& queries, const Part& part,
                                         const Team& team, int first_row, float scale_log2) {
    constexpr int LEAST = 3;  // stages: of the unit whose values are multiplied, of the next one, of what is copied
#pragma unroll 1
    for (; missing > 0; --missing) source.copy_next(ring[STAGES - 1 - missing]);
    WarpgroupScores scores, next;
    int unit = part.lo + team.slot;
    const auto prepare = [&]() {  // all that comes before the next unit's product, which may not be under way then
        if ((unit + 1) * UNIT > part.first_limit() || problem::window > 0) mask(scores, part, unit, first_row);
        raise(softmax, scores, scale_log2);
        await<(STAGES < LEAST ? LEAST : STAGES) - LEAST>(team);
    };
    const auto add = [&](const Stage& now, Stage& before) {  // what comes to the place of the unit before, then P V
        source.copy_next(before);
        weigh(softmax, scores, scale_log2);
        multiply_v(softmax, now, scores);
        ptx::wgmma::wait_group<0>();
        ptx::wgmma::hold(softmax.o);
    };
    if (unit < part.hi) {
        await<STAGES - 2>(team);
        multiply_k(scores, ring[stage], queries);
        ptx::wgmma::wait_group<0>();
        ptx::wgmma::hold(scores);
        prepare();
    }
#pragma unroll 1
    while (unit < part.hi) {
        const Stage& now = ring[stage];
        Stage& before = ring[(stage + STAGES - 1) % STAGES];
        stage = (stage + 1) % STAGES;
        unit += SLOTS;
        if (unit >= part.hi) return add(now, before);
        multiply_k(next, ring[stage], queries);
        add(now, before);
        ptx::wgmma::hold(next);
#pragma unroll
        for (int i = 0; i < UNIT / 2; ++i) scores[i] = next[i];
        prepare();
    }
}
