// attention_pingpong: y = softmax(q k^T / sqrt(head_dim)) v, consumers that multiply in turn: prefill.
//
// Idea: one consumer's softmax hides under the other's products. Named barriers pass the turn: a consumer issues the
// scores of its next block and the weighted sum of its last one, then lets the other issue, and makes weights of its
// scores meanwhile. A CTA takes one tile of queries after another from a counter in global memory, longest first.
// Adds to attention_warp_specialized: turns, a persistent CTA whose producer runs ahead into the next tile.
//
//   producer    | q, k 0 | k 1, v 0 | k 2, v 1 | k 3, v 2 ...                            blocks from the last to the first
//   consumer 0      | qk 0 |          | qk 1, wv 0 |  softmax 1  | qk 2, wv 1 |  softmax 2 ...
//   consumer 1             | qk 0 |   | softmax 0  | qk 1, wv 0  | softmax 1  | qk 2, wv 1 ...
//
// Bytes expected through TMA: q once, k and v once for every tile of queries that sees them. From HBM: each once, while
// the heads of a section fit in L2.
#include "lab/kernels/attention/_consumer.cuh"
#include "ptx/barrier.cuh"
#include "ptx/setmaxnreg.cuh"

constexpr int PRODUCER_REGISTERS = CONSUMERS == 2 ? 24 : 32, CONSUMER_REGISTERS = CONSUMERS == 2 ? 240 : 160;
constexpr int TURN = 1;  // named barrier of consumer 0's turn; the others' are the next

static_assert(schedule::threads == (1 + CONSUMERS) * WARPGROUP, "a producer and the consumers");

// The right to issue goes round.
struct Turn {
    int consumer;

    __device__ __forceinline__ void wait() const {
        if constexpr (schedule::turns) ptx::barrier::sync<2 * WARPGROUP>(TURN + consumer);
    }
    __device__ __forceinline__ void pass() const {
        if constexpr (schedule::turns) ptx::barrier::arrive<2 * WARPGROUP>(TURN + (consumer + 1) % CONSUMERS);
    }
    __device__ __forceinline__ void begin() const {
        if (consumer == CONSUMERS - 1) pass();
    }
    __device__ __forceinline__ void end() const {  // the barrier is as it was
        if (consumer == 0) wait();
    }
};

struct Consumer {
    Shared& shared;
    const Turn turn;
    const int row;    // this thread's first of the tile
    const float scale;
    Position k_at, v_at;
    Queries queries;

    __device__ __forceinline__ void issue_scores(Scores& scores) {
        if constexpr (schedule::q_registers)
            multiply_keys(scores, queries, shared.k[k_at.stage]);
        else
            multiply_keys(scores, shared.q, turn.consumer * MMA_M, shared.k[k_at.stage]);
        ptx::wgmma::commit_group();
    }

    // The scores of a block while the weighted sum of the block before is added up; then its weights.
    template <bool masked>
    __device__ __forceinline__ void step(const Work& work, int block, Scores& scores, Weights& weights, Values& y,
                                         Softmax& softmax, bool accumulate) {
        ptx::mbarrier::wait(shared.k_full[k_at.stage], k_at.parity);
        turn.wait();
        ptx::wgmma::fence();
        issue_scores(scores);
        if constexpr (schedule::early_pass) turn.pass();
        multiply_values(y, weights, shared.v[v_at.stage], accumulate);
        ptx::wgmma::commit_group();
        if constexpr (!schedule::early_pass) turn.pass();
        ptx::wgmma::wait_group<1>();
        ptx::wgmma::hold(scores);
        release(shared.k_empty[k_at.stage]);
        k_at.advance();
        if constexpr (masked) visible(work, row, block * schedule::block_n).mask(scores);
        softmax.take(scores);
        const int before = v_at.stage;
        v_at.advance();
        ptx::mbarrier::wait(shared.v_full[v_at.stage], v_at.parity ^ softmax.taken());  // the sum is waited for last
        ptx::wgmma::wait_group<0>();
        ptx::wgmma::hold(y);
        ptx::wgmma::hold(weights);
        release(shared.v_empty[before]);
        pack<Element>(weights, scores);
        softmax.rescale(y);
        ptx::wgmma::hold(weights);  // above the next fence
        ptx::wgmma::hold(y);
    }

    __device__ __forceinline__ void tile(const Work& work, const Results& results) {
        Values y;
        Softmax softmax(scale);
        if (work.first < work.last) {
            Scores scores;
            Weights weights;
            int block = work.last - 1;
            if constexpr (schedule::q_registers) {
                load_queries(queries, shared.q, turn.consumer * MMA_M + threadIdx.x % WARPGROUP / WARP * 16);
                ptx::wgmma::hold(queries);
                __syncwarp();
                release(shared.q_empty);
            }
            ptx::mbarrier::wait(shared.k_full[k_at.stage], k_at.parity);
            turn.wait();
            ptx::wgmma::fence();
            issue_scores(scores);
            turn.pass();
            ptx::wgmma::wait_group<0>();
            ptx::wgmma::hold(scores);
            release(shared.k_empty[k_at.stage]);
            k_at.advance();
            visible(work, row, block * schedule::block_n).mask(scores);
            softmax.take(scores);
            pack<Element>(weights, scores);
            ptx::mbarrier::wait(shared.v_full[v_at.stage], v_at.parity);
            ptx::wgmma::hold(weights);

            bool accumulate = false;
            const int ragged_end = work.ragged_end(), ragged_start = work.ragged_start();
            for (--block; block >= max(ragged_end, work.first); --block) {
                step<true>(work, block, scores, weights, y, softmax, accumulate);
                accumulate = true;
            }
            for (; block >= max(ragged_start, work.first); --block) {
                step<false>(work, block, scores, weights, y, softmax, accumulate);
                accumulate = true;
            }
            if constexpr (problem::window > 0)
                for (; block >= work.first; --block) {
                    step<true>(work, block, scores, weights, y, softmax, accumulate);
                    accumulate = true;
                }
            if constexpr (!schedule::q_registers) release(shared.q_empty);

            ptx::wgmma::fence();
            multiply_values(y, weights, shared.v[v_at.stage], accumulate);
            ptx::wgmma::commit_group();
            ptx::wgmma::wait_group<0>();
            ptx::wgmma::hold(y);
            release(shared.v_empty[v_at.stage]);
            v_at.advance();
        } else {
            release(shared.q_empty);
#pragma unroll
            for (int i = 0; i < problem::head_dim / 2; ++i) y[i] = 0;
        }
        results.store(y, softmax, work, row - threadIdx.x % WARP / 4, shared);
    }
};

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    attention_pingpong(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                       const __grid_constant__ TensorMap v_map, const Element*, const Element*, const Element*,
                       Element* y, float* lse, const int* q_starts, const int* kv_lens, const int* places,
                       int* counter, int batch, int q_len, int kv_heads, int row_pages, int pages, float scale) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned(dynamic);
    const int warpgroup = threadIdx.x / WARPGROUP;
    if (threadIdx.x == 0) {
        ptx::tma::prefetch(q_map);
        ptx::tma::prefetch(k_map);
        ptx::tma::prefetch(v_map);
        init(shared);
    }
    __syncthreads();

    if (warpgroup == 0) {
        ptx::setmaxnreg::dec<PRODUCER_REGISTERS>();
        if (threadIdx.x < WARP) {
            const Lengths lengths{q_starts, kv_lens, batch, q_len, kv_heads};
            const Cache cache{k_map, v_map, places, kv_heads, row_pages, pages};
            Producer producer{shared, q_map, cache};
            producer.begin();
            const int tiles = lengths.tiles();
            int index = take(counter, tiles);
            while (index < tiles) {
                const int next = take(counter, tiles);
                Work work;
                if (lengths.work(index, work)) producer.feed(work);
                index = next;
            }
            producer.end();
        }
    } else {
        ptx::setmaxnreg::inc<CONSUMER_REGISTERS>();
        const int thread = threadIdx.x % WARPGROUP;
        const Turn turn{__shfl_sync(0xffffffffu, warpgroup, 0) - 1};  // so that the compiler knows it uniform
        const int row = turn.consumer * MMA_M + thread / WARP * 16 + thread % WARP / 4;
        constexpr float LOG2_E = 1.4426950408889634f;
        Consumer consumer{shared, turn, row, scale * LOG2_E};
        const Results results{y, lse, kv_heads};
        turn.begin();
        for (uint32_t parity = 0;; parity ^= 1) {
            ptx::mbarrier::wait(shared.q_full, parity);
            if (!shared.more) break;
            const Work work = shared.work;
            __syncwarp();  // all of the warp have read it
            consumer.tile(work, results);
        }
        turn.end();
    }
}
