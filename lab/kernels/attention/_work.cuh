// What a CTA of prefill attention works on: a tile of queries of one sequence and KV head against a range of KV blocks.
#pragma once
#include "ptx/types.cuh"
#include "schedule.cuh"

constexpr int TOKENS = schedule::block_m / problem::group;  // of a tile: all query heads of a KV head are its rows
constexpr int ROWS = TOKENS * problem::group;                 // of a tile that are some query's

__device__ __forceinline__ int blocks_of(int extent, int block) { return (extent + block - 1) / block; }

// A tile of queries. Its row r is token r / group, query head r % group of the KV head.
struct Work {
    int query;        // first row of q
    int tokens;       // of the tile that exist; 0 where there is no work
    int head;         // KV head
    int sequence;
    int keys;         // of the sequence
    int diagonal;     // how many of them its first token sees, if it sees any: more by one with every token
    int first, last;  // KV blocks, `last` excluded

    // How many keys from the first on a token of the tile sees.
    __device__ __forceinline__ int end(int token) const {
        return problem::causal ? min(diagonal + token, keys) : keys;
    }

    // The first key that a token of the tile sees.
    __device__ __forceinline__ int start(int token) const {
        return problem::window > 0 ? diagonal + token - problem::window : 0;
    }

    // Blocks from this one on need a mask, as far as the end of what a token sees goes.
    __device__ __forceinline__ int ragged_end() const { return max(end(0), 0) / schedule::block_n; }

    // Blocks before this one need a mask, as far as the start of what a token sees goes.
    __device__ __forceinline__ int ragged_start() const {
        return problem::window > 0 ? blocks_of(max(start(tokens - 1), 0), schedule::block_n) : 0;
    }
};

// The problem at run time.
struct Lengths {
    const int *q_starts, *kv_lens;
    int batch, q_len, kv_heads;  // q_len is the longest that a sequence may have

    __device__ __forceinline__ int tiles() const { return blocks_of(q_len, TOKENS) * batch * kv_heads; }

    // Tile `index`; false where it lies beyond its sequence. Sections of `section` heads one after another, so that their
    // keys and values stay in L2; in a section the last tiles, which see most keys, first.
    __device__ __forceinline__ bool work(int index, Work& work) const {
        const int heads = batch * kv_heads, blocks = blocks_of(q_len, TOKENS);
        const int before = index / (schedule::section * blocks) * schedule::section;
        const int width = min(schedule::section, heads - before), inside = index - before * blocks;
        const int head = before + inside % width, token = (blocks - 1 - inside / width) * TOKENS;
        work.sequence = head / kv_heads;
        work.head = head % kv_heads;
        const int start = q_starts[work.sequence], queries = q_starts[work.sequence + 1] - start;
        work.query = start + token;
        work.tokens = min(TOKENS, queries - token);
        work.keys = kv_lens[work.sequence];
        work.diagonal = token + work.keys - queries + 1;
        work.first = max(work.start(0), 0) / schedule::block_n;
        work.last = blocks_of(max(work.end(work.tokens - 1), 0), schedule::block_n);
        return work.tokens > 0;
    }
};

// The next tile of the grid, by a warp; `counter` is 0 again when every CTA has been told that there is none left.
__device__ __forceinline__ int take(int* counter, int tiles) {
    int index;
    if (threadIdx.x % 32 == 0) {
        index = atomicAdd(counter, 1);
        if (index == tiles + int(gridDim.x) - 1) atomicExch(counter, 0);
    }
    return __shfl_sync(0xffffffffu, index, 0);
}
