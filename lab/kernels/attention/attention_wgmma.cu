// attention_wgmma: y = softmax(q k^T / sqrt(head_dim)) v, blocks of keys by TMA, products by warpgroups.
//
// Idea: one thread's instruction brings a whole box of keys to shared memory, swizzled as wgmma reads it, and a
// warpgroup multiplies from there with 64 rows of queries at once; nobody spends registers or instructions on copies.
// Adds to attention_mma_sync: TMA and mbarriers, wgmma with operands in shared memory.
//
// Warp roles: all alike, each warpgroup with 64 rows of the tile; the first warp also asks for the loads, the keys of a
// block while the one before is multiplied, and is waited for by its warpgroup meanwhile.
//
//   warpgroup 0   | load | qk 0 | softmax 0 | wv 0 | load | qk 1 | softmax 1 | wv 1 | ...   blocks from the last to the first
//   warpgroup 1          | qk 0 | softmax 0 | wv 0 |      | qk 1 | softmax 1 | wv 1 | ...
//
// Bytes expected through TMA: q once, k and v once for every tile of queries that sees them. From HBM: each once, while
// the tiles in flight share them in L2.
#include "lab/kernels/attention/_block_by_block.cuh"

static_assert(schedule::threads == CONSUMERS * WARPGROUP, "64 rows a warpgroup");

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    attention_wgmma(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                    const __grid_constant__ TensorMap v_map, const Element*, const Element*, const Element*, Element* y,
                    float* lse, const int* q_starts, const int* kv_lens, const int* places, int batch, int q_len,
                    int kv_heads, int row_pages, int pages, float scale) {
    extern __shared__ uint8_t dynamic[];
    constexpr float LOG2_E = 1.4426950408889634f;
    Shared& shared = aligned(dynamic);
    const bool loads = threadIdx.x < WARP;
    if (threadIdx.x == 0) init(shared);
    __syncthreads();

    const Lengths lengths{q_starts, kv_lens, places, batch, q_len, kv_heads};
    const Cache cache{k_map, v_map, places, kv_heads, row_pages, pages, 0};
    Producer producer{shared, q_map, cache};
    if (loads) {
        Work work;
        if (lengths.work(blockIdx.x, 0, work)) {
            producer.begin();
            producer.start(work);
        } else {
            producer.end();
        }
    }
    ptx::mbarrier::wait(shared.q_full, 0);
    BlockByBlock consumer(shared, uniform(threadIdx.x / WARPGROUP), scale * LOG2_E);
    consumer.run(Results{y, lse, kv_heads, {}}, [&](int block) {
        if (loads) producer.go_on(consumer.work, block);
        __syncwarp();
    });
}
