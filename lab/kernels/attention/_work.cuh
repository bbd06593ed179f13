// What a CTA of prefill attention works on: a tile of queries of one sequence and KV head against a range of KV blocks.
#pragma once
#include "lab/kernels/attention/elements.cuh"

constexpr int WARPGROUP = 128;
constexpr int TOKENS = schedule::block_m / problem::group;  // of a tile: all query heads of a KV head are its rows
constexpr int ROWS = TOKENS * problem::group;                 // of a tile that are some query's
constexpr int SPAN = schedule::cluster * TOKENS;              // tokens of the tiles of a cluster, which lie side by side

__device__ __forceinline__ int blocks_of(int extent, int block) { return (extent + block - 1) / block; }

// A tile of queries. Its row r is token r / group, query head r % group of the KV head.
struct Work {
    int query;        // first row of q
    int tokens;       // of the tile that exist, if any
    int head;         // KV head
    int sequence;     // or -1: there is no further work
    int keys;         // of the sequence
    int key;          // where a contiguous cache has the first of them
    int diagonal;     // how many of them its first token sees, if it sees any: more by one with every token
    int first, last;  // KV blocks of the split that any token of the cluster sees, `last` excluded
    int parts, part;  // into how many its KV blocks are split, and which this is
    int tile;         // of all tiles that are split

    // How many keys from the first on a token of the tile sees.
    __device__ __forceinline__ int end(int token) const {
        return problem::causal ? min(diagonal + token, keys) : keys;
    }

    // The first key that a token of the tile sees.
    __device__ __forceinline__ int start(int token) const {
        return problem::window > 0 ? diagonal + token - problem::window : 0;
    }

    // Blocks from this one on need a mask, as far as the end of what a token sees goes.
    __device__ __forceinline__ int ragged_end() const {
        return max(problem::causal ? diagonal : keys, 0) / schedule::block_n;
    }

    // Blocks before this one need a mask, as far as the start of what a token sees goes.
    __device__ __forceinline__ int ragged_start() const {
        return problem::window > 0 ? blocks_of(max(start(tokens - 1), 0), schedule::block_n) : 0;
    }
};

// The problem at run time.
struct Lengths {
    const int *q_starts, *kv_lens, *places;  // places: the first row of each sequence's keys, or the block table
    int batch, q_len, kv_heads;  // q_len is the longest that a sequence may have

    __device__ __forceinline__ int spans() const { return blocks_of(q_len, SPAN) * batch * kv_heads; }

    // Spans that are not split: as many as the clusters of the grid take an equal number of.
    __device__ __forceinline__ int whole() const {
        if constexpr (schedule::splits == 1) return spans();
        return spans() - spans() % (int(gridDim.x) / schedule::cluster);
    }

    // What the clusters of the grid work on: whole spans, then the splits of the others.
    __device__ __forceinline__ int works() const { return whole() + (spans() - whole()) * schedule::splits; }

    // Work `index` for the CTA of rank `rank`; false where its span lies beyond its sequence. Sections of `section` heads
    // one after another, so that their keys and values stay in L2; in a section the last spans, which see most keys, first.
    __device__ __forceinline__ bool work(int index, int rank, Work& work) const {
        const int others = index - whole(), span = others < 0 ? index : whole() + others / schedule::splits;
        const int heads = batch * kv_heads, blocks = blocks_of(q_len, SPAN);
        const int before = span / (schedule::section * blocks) * schedule::section;
        const int width = min(schedule::section, heads - before), inside = span - before * blocks;
        const int head = before + inside % width, token = (blocks - 1 - inside / width) * SPAN;
        work.sequence = head / kv_heads;
        work.head = head % kv_heads;
        const int start = q_starts[work.sequence], queries = q_starts[work.sequence + 1] - start;
        work.query = start + token;
        work.tokens = min(SPAN, queries - token);
        work.keys = kv_lens[work.sequence];
        if constexpr (problem::page == 0) work.key = places[work.sequence];
        work.diagonal = token + work.keys - queries + 1;
        work.first = max(work.start(0), 0) / schedule::block_n;
        work.last = blocks_of(max(work.end(work.tokens - 1), 0), schedule::block_n);
        const bool exists = work.tokens > 0;

        work.parts = others < 0 ? 1 : schedule::splits;
        work.part = others < 0 ? 0 : others % schedule::splits;
        const int seen = max(work.last - work.first, 0), from = work.first;
        work.first = from + seen * work.part / work.parts;
        work.last = from + seen * (work.part + 1) / work.parts;
        work.tile = (span - whole()) * schedule::cluster + rank;
        work.query += rank * TOKENS;
        work.tokens = min(work.tokens - rank * TOKENS, TOKENS);
        work.diagonal += rank * TOKENS;
        return exists;
    }
};
