// Scores of a block of tokens, which become weights.
#pragma once
#include "lab/kernels/attention/mla_rows.cuh"
#include "ptx/barrier.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/stmatrix.cuh"
#include "ptx/wgmma.cuh"

constexpr int SCORES_BARRIER = 1;  // named barrier of the warpgroup that makes scores
constexpr int QUERY_STEPS = VALUE_BOXES * BOX_STEPS - 1;  // of q in registers

using Queries = uint32_t[QUERY_STEPS][4];

enum class After { BLOCK, PART, NOTHING };

// The warpgroup that makes scores and weights.
struct Scorer {
    Shared& shared;
    const Results& results;
    const float scale_log2;
    Position at;
    Turn turn;  // of its part
    Queries queries;

    __device__ __forceinline__ Scorer(Shared& shared, const Results& results, float scale_log2)
        : shared(shared), results(results), scale_log2(scale_log2) {}

    // Whether a row of this thread's, r = 0 and 1, is one of the sequence's. Of others queries and weights are 0: they
    // cost the tensor cores their time, but little power.
    __device__ __forceinline__ bool is_live(const Lane& own, int r) const {
        return results.rank * BLOCK_M + own.row(r) < shared.parts[turn.of_three()].rows();
    }

    // The queries of a part to registers; the last columns, which scores read in shared memory, to where they stay.
    __device__ __forceinline__ void take_queries() {
        const Tile& tile = shared.ring[at.stage];
        const Lane own;
        const int row = own.warp * 16 + own.index % 16, right = own.index / 16, first = (right ^ row % 8) * 8;
        ptx::mbarrier::wait(shared.full[at.stage][0], at.parity);
        ptx::mbarrier::wait(shared.full[at.stage][1], at.parity);
        const bool live[2] = {is_live(own, 0), is_live(own, 1)};
#pragma unroll
        for (int step = 0; step < BOXES * BOX_STEPS; ++step) {
            const int column = first ^ step % BOX_STEPS * MMA_K;  // swizzled
            const uint32_t from = ptx::address::shared(&tile[step / BOX_STEPS][row][column]);
            if (step < QUERY_STEPS) {
                ptx::ldmatrix::x4(queries[step], from);
#pragma unroll
                for (int i = 0; i < 4; ++i) queries[step][i] = live[i % 2] ? queries[step][i] : 0;
            } else {
                Element* to =
                    step == QUERY_STEPS ? shared.q_columns[row / 8][right][row % 8] : &shared.q_rest[row][column];
                uint32_t part[4];
                ptx::ldmatrix::x4(part, from);
#pragma unroll
                for (int i = 0; i < 4; ++i) part[i] = live[i % 2] ? part[i] : 0;
                ptx::stmatrix::x4(to, part[0], part[1], part[2], part[3]);
            }
        }
        ptx::wgmma::hold(queries);
        ptx::fence::proxy_async_shared();
        ptx::barrier::sync<WARPGROUP>(SCORES_BARRIER);
        arrive(shared.scored[at.stage]);  // nobody waits, but every lap of the ring is a phase
        arrive(shared.weighed[at.stage]);
        for (int i = 0; i < VALUES_WARPGROUPS; ++i) {  // in place of the others
            release(shared.empty[at.stage][0]);
            release(shared.empty[at.stage][1]);
        }
        at.advance();
    }

    template <int group>
    __device__ __forceinline__ void multiply_group(Scores& scores, const Tile& keys) {
#pragma unroll
        for (int step = 0; step < QUERY_STEPS; ++step) {
            const int box = step / BOX_STEPS;
            if (group_of(box) != group) continue;
            ptx::wgmma::mma<Element>(
                scores, queries[step],
                ptx::wgmma::advance(ptx::wgmma::descriptor_k_major_128b(keys[box]), step % BOX_STEPS * MMA_BYTES),
                step > 0);
        }
    }

    // scores = q k^T.
    __device__ __forceinline__ void multiply_keys(Scores& scores, int stage) {
        const Tile& keys = shared.ring[stage];
        ptx::mbarrier::wait(shared.full[stage][0], at.parity);
        ptx::wgmma::fence();
        multiply_group<0>(scores, keys);
        ptx::mbarrier::wait(shared.full[stage][1], at.parity);
        ptx::wgmma::fence();
        multiply_group<1>(scores, keys);
        ptx::wgmma::mma<Element>(scores, ptx::wgmma::descriptor_k_major(shared.q_columns),
                                 ptx::wgmma::advance(ptx::wgmma::descriptor_k_major_128b(keys[VALUE_BOXES - 1]),
                                                     (BOX_STEPS - 1) * MMA_BYTES),
                                 true);
        const uint64_t a = ptx::wgmma::descriptor_k_major_128b(shared.q_rest);
        const uint64_t b = ptx::wgmma::descriptor_k_major_128b(keys[VALUE_BOXES]);
#pragma unroll
        for (int step = 0; step < BOX_STEPS; ++step)
            ptx::wgmma::mma<Element>(scores, ptx::wgmma::advance(a, step * MMA_BYTES),
                                     ptx::wgmma::advance(b, step * MMA_BYTES), true);
        ptx::wgmma::commit_group();
        ptx::wgmma::wait_group<0>();
        ptx::wgmma::hold(scores);
    }

    // Zeros in the values of tokens from `token` of the block on, which may be NaN: no weight of 0 would make those 0.
    __device__ __forceinline__ void clear(Tile& tile, int token) const {
        constexpr int CHUNKS = BOX_COLUMNS * sizeof(Element) / sizeof(Vector16);
        for (int box = 0; box < VALUE_BOXES; ++box)
            for (int i = token * CHUNKS + threadIdx.x % WARPGROUP; i < BLOCK_N * CHUNKS; i += WARPGROUP)
                reinterpret_cast<Vector16*>(tile[box])[i] = {};
    }

    // Weights to where the last columns of the keys were, as the values warpgroups multiply them.
    __device__ __forceinline__ void leave(const Scores& weights, Box& box) const {
        const Lane own;
        const int row = own.warp * 16 + own.index % 16, first = (own.index / 16 ^ row % 8) * 8;
        uint32_t rounded[STEPS][4];
        pack<Element>(rounded, weights);
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
            ptx::stmatrix::x4(&box[row][first ^ step * MMA_K], rounded[step][0], rounded[step][1], rounded[step][2],
                              rounded[step][3]);
    }

    // Which columns of the block at `token` each of this thread's rows sees, from its first column on.
    __device__ __forceinline__ Visible visible(const Part& part, int token) const {
        const Lane own;
        Visible seen;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            seen.start[r] = 0;
            const int row = part.first + results.rank * BLOCK_M + own.row(r);
            seen.end[r] = part.limit(row / problem::group) - token - first_column();
        }
        return seen;
    }

    // What a row's last weights leave to be done: the inverse of their sum, and the row's log-sum-exp.
    __device__ __forceinline__ void finish(const PowerSoftmax& softmax, const Part& part) const {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const Lane own;
            const float total = row_sum(softmax.sum[r]);
            if (own.index % 4) continue;
            shared.inverse[turn.of_two()][own.row(r)] = total > 0 ? __fdividef(1, total) : 0;
            if (results.rank * BLOCK_M + own.row(r) >= part.rows()) continue;
            if (part.slot >= 0)
                results.partial_lse[results.partial_row(part.slot, own.row(r))] = softmax.log_sum_exp(r, total);
            else if constexpr (problem::lse)
                results.lse[part.row + results.rank * BLOCK_M + own.row(r)] = softmax.log_sum_exp(r, total);
        }
    }

    // A block: its scores become weights. What comes after it is known before others may reuse the part's place.
    __device__ __forceinline__ After step(int block, PowerSoftmax& softmax) {
        const int stage = uniform(at.stage), token = block * BLOCK_N;
        const Part& part = shared.parts[turn.of_three()];
        Scores scores;
        multiply_keys(scores, stage);
        arrive(shared.scored[stage]);
        if (token + BLOCK_N > part.limit(0)) visible(part, token).mask(scores);
        uint32_t powers[2];
        softmax.take(scores, scale_log2, powers);
        const Lane own;
        if (own.index % 4 == 0)
            shared.decay[stage][own.row(0)] = powers[0], shared.decay[stage][own.row(1)] = powers[1];
        ptx::mbarrier::wait(shared.scored[stage], at.parity);  // all warps are through with the keys
        leave(scores, shared.ring[stage][VALUE_BOXES]);
        const int rows = part.kv_len - token;
        if (rows < BLOCK_N) clear(shared.ring[stage], max(rows, 0));
        const After after = block < part.hi - 1 ? After::BLOCK : part.more ? After::PART : After::NOTHING;
        if (after != After::BLOCK) finish(softmax, part);
        ptx::fence::proxy_async_shared();
        arrive(shared.weighed[stage]);
        at.advance();
        return after;
    }

    __device__ __forceinline__ void run() {
        After after;
        do {
            take_queries();
            PowerSoftmax softmax;
            for (int r = 0; r < 2; ++r)
                if (!is_live(Lane(), r)) softmax.maximum[r] = PowerSoftmax::BEYOND_ALL;
            int block = shared.parts[turn.of_three()].lo;
            do after = step(block++, softmax);
            while (after == After::BLOCK);
            turn.advance();
        } while (after == After::PART);
    }
};
