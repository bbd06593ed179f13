// attention_warp_specialized: y = softmax(q k^T / sqrt(head_dim)) v, a producer warp and warpgroups that multiply.
//
// Idea: whoever loads need not wait for those who multiply, and the other way round: one warp keeps the rings full, two
// warpgroups empty them, each with 64 rows of the tile. The producer gives its registers away.
// Adds to attention_wgmma: a role for the loads, registers moved to where they are needed.
//
//   producer    | q, k 0 | k 1, v 0 | k 2, v 1 | k 3, v 2 ...                            blocks from the last to the first
//   consumer 0      | qk 0 | softmax 0 | wv 0 | qk 1 | softmax 1 | wv 1 | ...
//   consumer 1      | qk 0 | softmax 0 | wv 0 | qk 1 | softmax 1 | wv 1 | ...
//
// Bytes expected through TMA: q once, k and v once for every tile of queries that sees them. From HBM: each once, while
// the tiles in flight share them in L2.
#include "lab/kernels/attention/_block_by_block.cuh"
#include "ptx/setmaxnreg.cuh"

static_assert(schedule::threads == (1 + CONSUMERS) * WARPGROUP, "a producer and the consumers");

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    attention_warp_specialized(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                               const __grid_constant__ TensorMap v_map, const Element*, const Element*, const Element*,
                               Element* y, float* lse, const int* q_starts, const int* kv_lens, const int* places,
                               int batch, int q_len, int kv_heads, int row_pages, int pages, float scale) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned(dynamic);
    const int warpgroup = threadIdx.x / WARPGROUP;
    if (threadIdx.x == 0) init(shared);
    __syncthreads();

    if (warpgroup == 0) {
        ptx::setmaxnreg::dec<PRODUCER_REGISTERS>();
        if (threadIdx.x >= WARP) return;
        const Lengths lengths{q_starts, kv_lens, places, batch, q_len, kv_heads};
        const Cache cache{k_map, v_map, places, kv_heads, row_pages, pages, 0};
        Producer producer{shared, q_map, cache};
        Work work;
        if (lengths.work(blockIdx.x, 0, work)) {
            producer.begin();
            producer.feed(work);
        } else {
            producer.end();
        }
    } else {
        ptx::setmaxnreg::inc<CONSUMER_REGISTERS>();
        constexpr float LOG2_E = 1.4426950408889634f;
        ptx::mbarrier::wait(shared.q_full, 0);
        BlockByBlock consumer(shared, uniform(warpgroup) - 1, scale * LOG2_E);
        consumer.run(Results{y, lse, kv_heads, {}}, [](int) {});
    }
}
