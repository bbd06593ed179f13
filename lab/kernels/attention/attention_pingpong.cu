// attention_pingpong: y = softmax(q k^T / sqrt(head_dim)) v, consumers that multiply in turn: prefill.
//
// Idea: one consumer's softmax hides under the other's products. Named barriers pass the turn: a consumer issues the
// scores of its next block and the weighted sum of its last one, then lets the other issue, and makes weights of its
// scores meanwhile. A CTA takes one tile of queries after another from a counter in global memory, longest first.
// Adds to attention_warp_specialized: the scores of a block beside the weighted sum of the one before, turns, a
// persistent CTA whose producer runs ahead into the next tile.
//
//   producer    | q, k 0 | k 1, v 0 | k 2, v 1 | k 3, v 2 ...                            blocks from the last to the first
//   consumer 0      | qk 0 |          | qk 1, wv 0 |  softmax 1  | qk 2, wv 1 |  softmax 2 ...
//   consumer 1             | qk 0 |   | softmax 0  | qk 1, wv 0  | softmax 1  | qk 2, wv 1 ...
//
// Bytes expected through TMA: q once, k and v once for every tile of queries that sees them. From HBM: each once, while
// the heads of a section fit in L2.
#include "lab/kernels/attention/_consumer.cuh"
#include "lab/kernels/attention/_results.cuh"
#include "ptx/barrier.cuh"
#include "ptx/setmaxnreg.cuh"

constexpr int FIRST = schedule::block_n * schedule::settle / 32 * 2;  // a thread's weights of a block before it settles
constexpr int TURN = 1;  // named barrier of consumer 0's turn; the others' are the next

static_assert(schedule::threads == (1 + CONSUMERS) * WARPGROUP, "a producer and the consumers");

// The right to issue goes round.
struct Turn {
    int consumer;

    __device__ __forceinline__ void wait() const {
        if constexpr (schedule::turns > 0) ptx::barrier::sync<2 * WARPGROUP>(TURN + consumer);
    }
    __device__ __forceinline__ void pass() const {
        if constexpr (schedule::turns > 0) ptx::barrier::arrive<2 * WARPGROUP>(TURN + (consumer + 1) % CONSUMERS);
    }
    __device__ __forceinline__ void begin() const {
        if (consumer == CONSUMERS - 1) pass();
    }
    __device__ __forceinline__ void end() const {  // the barrier is as it was
        if (consumer == 0) wait();
    }
};

// A consumer never stops multiplying between tiles: the first scores of a tile are issued with the last weighted sum of
// the one before.
struct Consumer {
    Shared& shared;
    const Turn turn;
    const Results& results;
    const float scale;
    const int row = turn.consumer * MMA_M + threadIdx.x % WARPGROUP / WARP * 16;  // this warp's first of a tile
    Position k_at, v_at;
    uint32_t q_parity = 0;
    bool accumulate;  // whether the tile has a weighted sum yet
    Queries queries;
    Weights weights;
    Values y;

    __device__ __forceinline__ Consumer(Shared& shared, Turn turn, const Results& results, float scale)
        : shared(shared), turn(turn), results(results), scale(scale) {}

    // The next tile that sees any key, or null; of those that see none the results are stored at once.
    __device__ __forceinline__ const Work* next() {
        const Work* work;
        for (;;) {
            ptx::mbarrier::wait(shared.q_full, q_parity);
            work = &shared.work[q_parity];
            q_parity ^= 1;
            if (work->sequence < 0) return nullptr;
            if (work->first < work->last) break;
            release(shared.q_empty);
            results.store_nothing(*work, row);
        }
        if constexpr (schedule::q_registers) {
            load_queries(queries, shared.q, row);
            ptx::wgmma::hold(queries);
            __syncwarp();
            release(shared.q_empty);
        }
        return work;
    }

    __device__ __forceinline__ void issue_scores(Scores& scores, int stage) {
        if constexpr (schedule::q_registers)
            multiply_keys(scores, queries, shared.k[stage]);
        else
            multiply_keys(scores, shared.q, turn.consumer * MMA_M, shared.k[stage]);
        ptx::wgmma::commit_group();
    }

    // Scores that have been waited for.
    template <bool masked>
    __device__ __forceinline__ void receive(const Work& work, int block, Scores& scores, Softmax& softmax) {
        ptx::wgmma::hold(scores);
        release_cluster(shared.k_empty[k_at.stage]);
        k_at.advance();
        if constexpr (masked) visible(work, row + threadIdx.x % WARP / 4, block * schedule::block_n).mask(scores);
        softmax.begin(scores);
    }

    // The first block of the first tile.
    __device__ __forceinline__ void begin(const Work& work, Softmax& softmax) {
        Scores scores;
        ptx::mbarrier::wait(shared.k_full[k_at.stage], k_at.parity);
        turn.wait();
        ptx::wgmma::fence();
        issue_scores(scores, k_at.stage);
        if constexpr (schedule::turns == 1) turn.pass();
        ptx::wgmma::wait_group<0>();
        if constexpr (schedule::turns == 2) turn.pass();
        receive<true>(work, work.last - 1, scores, softmax);
        softmax.weigh<0, schedule::block_n / 2>(scores);
        pack<Element>(weights, scores);
        accumulate = false;
    }

    // The weighted sum of the block before is in y.
    __device__ __forceinline__ void wait_values() {
        ptx::wgmma::wait_group<0>();
        ptx::wgmma::hold(y);
    }

    // The scores of a block while the weighted sum of the block before is added up; `settle` waits for that sum, when the
    // first weights are there: the others are made while those are packed.
    template <bool masked, typename Settle>
    __device__ __forceinline__ void step(const Work& work, int block, Softmax& softmax, Settle settle) {
        Scores scores;
        const int k_stage = uniform(k_at.stage), v_stage = uniform(v_at.stage);
        ptx::mbarrier::wait(shared.k_full[k_at.stage], k_at.parity);
        turn.wait();
        ptx::wgmma::hold(weights);  // above the fence, as y
        ptx::wgmma::hold(y);
        ptx::wgmma::fence();
        issue_scores(scores, k_stage);
        ptx::mbarrier::wait(shared.v_full[v_at.stage], v_at.parity);
        multiply_values(y, weights, shared.v[v_stage], accumulate);
        ptx::wgmma::commit_group();
        if constexpr (schedule::turns == 1) turn.pass();
        ptx::wgmma::wait_group<1>();
        if constexpr (schedule::turns == 2) turn.pass();
        receive<masked>(work, block, scores, softmax);
        softmax.weigh<0, FIRST>(scores);
        accumulate = true;
        settle();
        ptx::wgmma::hold(weights);
        release_cluster(shared.v_empty[v_at.stage]);
        v_at.advance();
        softmax.weigh<FIRST, schedule::block_n / 2>(scores);
        pack<Element>(weights, scores);
    }

    // The last weighted sum of a tile.
    __device__ __forceinline__ void end() {
        ptx::mbarrier::wait(shared.v_full[v_at.stage], v_at.parity);
        ptx::wgmma::hold(weights);
        ptx::wgmma::hold(y);
        ptx::wgmma::fence();
        multiply_values(y, weights, shared.v[v_at.stage], accumulate);
        ptx::wgmma::commit_group();
        wait_values();
        release_cluster(shared.v_empty[v_at.stage]);
        v_at.advance();
    }

    // The blocks of a tile after its last one: those that need masks at the end, that need none, that need masks at the
    // start.
    __device__ __forceinline__ void go_on(const Work& work, Softmax& softmax) {
        const auto rescale = [&] {
            if (softmax.rescales()) {
                wait_values();
                softmax.rescale(y);
            } else {
                wait_values();
            }
        };
        const int first = work.first, ragged_end = work.ragged_end(), ragged_start = work.ragged_start();
        int block = work.last - 2;
        for (; block >= max(ragged_end, first); --block) step<true>(work, block, softmax, rescale);
        for (; block >= max(ragged_start, first); --block) step<false>(work, block, softmax, rescale);
        if constexpr (problem::window > 0)
            for (; block >= first; --block) step<true>(work, block, softmax, rescale);
        if constexpr (!schedule::q_registers) release(shared.q_empty);
    }

    // Every tile, one after another; what parts need in registers leaves no room for two at a time.
    __device__ __forceinline__ void run_apart() {
        while (const Work* work = next()) {
            Softmax softmax(scale);
            begin(*work, softmax);
            go_on(*work, softmax);
            end();
            results.store(y, softmax, *work, row);
            __syncwarp();
        }
    }

    // Every tile, the first scores of each beside the last weighted sum of the one before.
    __device__ __forceinline__ void run() {
        const Work* work = next();
        if (work == nullptr) return;
        Work& done = shared.done[threadIdx.x / WARP - WARPGROUP / WARP];
        Softmax softmax(scale);
        begin(*work, softmax);
        for (;;) {
            go_on(*work, softmax);
            __syncwarp();
            if (threadIdx.x % WARP == 0) done = *work;
            __syncwarp();
            const Softmax ended = softmax;
            softmax = Softmax(scale);
            work = next();
            if (work == nullptr) {
                end();
                results.store(y, ended, done, row);
                return;
            }
            step<true>(*work, work->last - 1, softmax, [&] {
                wait_values();
                results.store(y, ended, done, row);
                accumulate = false;
            });
        }
    }
};

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    attention_pingpong(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                       const __grid_constant__ TensorMap v_map, const Element*, const Element*, const Element*,
                       Element* y, float* lse, const int* q_starts, const int* kv_lens, const int* places,
                       int* counter, float* part_y, float* part_log_sums, uint32_t* arrived, int batch, int q_len,
                       int kv_heads, int row_pages, int pages, float scale) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned(dynamic);
    const int warpgroup = threadIdx.x / WARPGROUP;
    if (threadIdx.x == 0) {
        ptx::tma::prefetch(q_map);
        ptx::tma::prefetch(k_map);
        ptx::tma::prefetch(v_map);
        init(shared);
    }
    sync_cluster();

    if (warpgroup == 0) {
        ptx::setmaxnreg::dec<PRODUCER_REGISTERS>();
        if (threadIdx.x < WARP) {
            const int rank = schedule::cluster == 1 ? 0 : int(ptx::cluster::rank());
            const Lengths lengths{q_starts, kv_lens, places, batch, q_len, kv_heads};
            const Cache cache{k_map, v_map, places, kv_heads, row_pages, pages, rank};
            Producer producer{shared, q_map, cache};
            Tickets tickets{shared, counter, lengths.works(), rank};
            producer.begin();
            for (int index = tickets.first(); index < tickets.works; index = tickets.get()) {
                tickets.ask();
                Work work;
                if (lengths.work(index, rank, work)) producer.feed(work);
            }
            producer.end();
        }
    } else {
        ptx::setmaxnreg::inc<CONSUMER_REGISTERS>();
        const Turn turn{uniform(warpgroup) - 1};
        constexpr float LOG2_E = 1.4426950408889634f;
        const Results results{y, lse, kv_heads, {part_y, part_log_sums, arrived}};
        turn.begin();
        Consumer consumer(shared, turn, results, scale * LOG2_E);
        if constexpr (schedule::splits > 1)
            consumer.run_apart();
        else
            consumer.run();
        turn.end();
    }
    finish();
}
