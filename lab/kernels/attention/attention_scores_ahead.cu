// attention_scores_ahead: y = softmax(q k^T / sqrt(head_dim)) v, scores made a block ahead of their softmax: prefill.
//
// Idea: a consumer that waits for its scores before it can begin their softmax leaves the tensor cores to the others for
// longer than these have work for them. Here it issues the scores of the next block together with the weighted sum of
// the last one, and makes weights of scores that are already there meanwhile: two blocks of scores in registers, so
// blocks of fewer keys. Products are waited for once a block, after the softmax, when they are done.
// Adds to attention_pingpong: two blocks of scores in flight; no turns, which nobody needs then.
//
//   producer    | q, k 0 | k 1, v 0 | k 2, v 1 | k 3, v 2 ...                            blocks from the last to the first
//   consumer 0      | qk 0 |  qk 1        | wv 0, qk 2  | wv 1, qk 3  | ...              products
//                          |  softmax 0   |  softmax 1  |  softmax 2  | ...              in the same warps meanwhile
//
// Bytes expected through TMA: q once, k and v once for every tile of queries that sees them. From HBM: each once, while
// the heads of a section fit in L2.
#include "lab/kernels/attention/_persistent.cuh"
#include "lab/kernels/attention/_results.cuh"

struct Consumer {
    Shared& shared;
    const Results& results;
    const float scale;
    const int top, row;  // the first rows of this consumer and of this warp, of a tile
    Position k_at, v_at;
    uint32_t q_parity = 0;
    Weights weights;
    Values y;

    __device__ __forceinline__ Consumer(Shared& shared, int consumer, const Results& results, float scale)
        : shared(shared), results(results), scale(scale), top(consumer * MMA_M),
          row(top + threadIdx.x % WARPGROUP / WARP * 16) {}

    __device__ __forceinline__ void issue_scores(Scores& scores) {
        multiply_keys(scores, shared.q, top, shared.k[uniform(k_at.stage)]);
        ptx::wgmma::commit_group();
    }

    __device__ __forceinline__ void issue_values(bool accumulate) {
        multiply_values<0, STEPS>(y, weights, shared.v[uniform(v_at.stage)], accumulate);
        ptx::wgmma::commit_group();
    }

    // Weights and sums so far are done with before what is issued next; their registers are written before.
    __device__ __forceinline__ void begin_issue() {
        ptx::wgmma::hold(weights);
        ptx::wgmma::hold(y);
        ptx::wgmma::fence();
    }

    __device__ __forceinline__ void await_keys() { ptx::mbarrier::wait(shared.k_full[k_at.stage], k_at.parity); }
    __device__ __forceinline__ void await_values() { ptx::mbarrier::wait(shared.v_full[v_at.stage], v_at.parity); }

    __device__ __forceinline__ void keys_are_read() {
        release_cluster(shared.k_empty[k_at.stage]);
        k_at.advance();
    }
    __device__ __forceinline__ void values_are_read() {
        release_cluster(shared.v_empty[v_at.stage]);
        v_at.advance();
    }

    // Scores of a block to weights, in place.
    __device__ __forceinline__ void weigh(const Work& work, int block, Scores& scores, Softmax& softmax) const {
        if (block >= work.ragged_end() || block < work.ragged_start())
            visible(work, row + threadIdx.x % WARP / 4, block * schedule::block_n).mask(scores);
        softmax.take(scores);
        ptx::wgmma::hold(scores);
    }

    // Weights of a block from `scores`, while the next block's are made in `after` and, but for the tile's `first` block,
    // the values of the block before are added to y.
    template <bool first>
    __device__ __forceinline__ void step(const Work& work, int block, Scores& scores, Scores& after, Softmax& softmax,
                                         bool accumulate) {
        await_keys();
        if constexpr (!first) await_values();
        begin_issue();
        if constexpr (!first) issue_values(accumulate);
        issue_scores(after);
        weigh(work, block, scores, softmax);
        ptx::wgmma::wait_group<0>();
        ptx::wgmma::hold(after);
        ptx::wgmma::hold(y);
        keys_are_read();
        if constexpr (!first) {
            values_are_read();
            softmax.rescale(y);
        }
        pack<Element>(weights, scores);
    }

    // The values of the last block that has weights.
    __device__ __forceinline__ void add_values(bool accumulate) {
        await_values();
        begin_issue();
        issue_values(accumulate);
    }
    __device__ __forceinline__ void await_sums() {
        ptx::wgmma::wait_group<0>();
        ptx::wgmma::hold(y);
        values_are_read();
    }

    // A tile that sees some key: blocks from the last to the first, the scores of one in `odd` and of the next in `even`.
    __device__ __forceinline__ void run(const Work& work) {
        Softmax softmax(scale);
        Scores odd, even;
        int block = work.last - 1;
        bool accumulate = false;  // whether y has a sum yet
        await_keys();
        ptx::wgmma::fence();
        issue_scores(even);
        ptx::wgmma::wait_group<0>();
        ptx::wgmma::hold(even);
        keys_are_read();
        if (block > work.first) {
            step<true>(work, block--, even, odd, softmax, false);
            for (; block - 1 > work.first; block -= 2) {
                step<false>(work, block, odd, even, softmax, accumulate);
                step<false>(work, block - 1, even, odd, softmax, true);
                accumulate = true;
            }
            if (block > work.first) {
                step<false>(work, block--, odd, even, softmax, accumulate);
                accumulate = true;
            } else {
                copy(even, odd);
            }
            add_values(accumulate);
            accumulate = true;
        }
        release(shared.q_empty);
        weigh(work, block, even, softmax);
        if (accumulate) {
            await_sums();
            softmax.rescale(y);
        }
        pack<Element>(weights, even);
        add_values(accumulate);
        await_sums();
        results.store(y, softmax, work, row);
    }

    static __device__ __forceinline__ void copy(Scores& to, const Scores& from) {
#pragma unroll
        for (int i = 0; i < schedule::block_n / 2; ++i) to[i] = from[i];
    }

    // Every tile; of those that see no key the results are stored at once.
    __device__ __forceinline__ void run() {
        Work& work = shared.done[threadIdx.x / WARP - WARPGROUP / WARP];  // this warp's own: the producer goes on
        for (;;) {
            ptx::mbarrier::wait(shared.q_full, q_parity);
            __syncwarp();
            if (threadIdx.x % WARP == 0) work = shared.work[q_parity];
            __syncwarp();
            q_parity ^= 1;
            if (work.sequence < 0) return;
            if (work.first < work.last) {
                run(work);
            } else {
                release(shared.q_empty);
                results.store_nothing(work, row);
            }
        }
    }
};

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    attention_scores_ahead(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                           const __grid_constant__ TensorMap v_map, const Element*, const Element*, const Element*,
                           Element* y, float* lse, const int* q_starts, const int* kv_lens, const int* places,
                           int* counter, float* part_y, float* part_log_sums, uint32_t* arrived, int batch, int q_len,
                           int kv_heads, int row_pages, int pages, float scale) {
    const Lengths lengths{q_starts, kv_lens, places, batch, q_len, kv_heads};
    const Results results{y, lse, kv_heads, {part_y, part_log_sums, arrived}};
    run_persistent({q_map, k_map, v_map}, lengths, row_pages, pages, counter, [&](Shared& shared, int consumer) {
        Consumer(shared, consumer, results, scale * LOG2_E).run();
    });
}
