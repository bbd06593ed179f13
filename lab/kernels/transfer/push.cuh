// Push: rows of a pool to rows of another GPU's pool, by tables of both, and then an epoch to the receiver's flag.
//
// A warp has `vectors` requests of 512 contiguous bytes of one row, all loaded before the first is stored. Each CTA's
// stores come before its count, by a fence at system scope; the CTA that counts last stores the epoch, after a fence
// that orders it behind what the others counted. Who reads the epoch there by an acquire at system scope sees all rows.
#pragma once
#include "ptx/atom.cuh"
#include "ptx/fence.cuh"
#include "ptx/load.cuh"
#include "ptx/store.cuh"

constexpr int LANES = 32;
constexpr int REQUEST = LANES * sizeof(Vector16);  // bytes of a warp's

// What is to go where.
struct Rows {
    const char* source;
    char* target;
    const int32_t *from, *to;
    int rows;
    int64_t row_bytes;  // a multiple of 16
};

// This CTA's part, one of `ctas`: every ctas-th piece of `warps` x `vectors` requests.
template <int warps, int vectors>
__device__ __forceinline__ void push(const Rows& r, int cta, int ctas) {
    constexpr int AT_ONCE = vectors * REQUEST;
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const int pieces = (r.row_bytes + warps * AT_ONCE - 1) / (warps * AT_ONCE);
    for (int64_t item = cta; item < int64_t(r.rows) * pieces; item += ctas) {
        const int row = item / pieces;
        const int64_t first = (item % pieces * warps + warp) * AT_ONCE;
        if (first >= r.row_bytes) continue;
        const char* from = r.source + int64_t(ptx::load::cached_4(r.from + row)) * r.row_bytes;
        char* to = r.target + int64_t(ptx::load::cached_4(r.to + row)) * r.row_bytes;
        Vector16 piece[vectors];
#pragma unroll
        for (int v = 0; v < vectors; ++v) {
            const int64_t at = first + v * REQUEST + lane * sizeof(Vector16);
            piece[v] = ptx::load::no_allocate_if<16>(from + at, at < r.row_bytes);
        }
        __syncwarp();  // ptxas would sink each load to its store; it moves none across a warp barrier
#pragma unroll
        for (int v = 0; v < vectors; ++v) {
            const int64_t at = first + v * REQUEST + lane * sizeof(Vector16);
            if (at < r.row_bytes) ptx::store::global<16>(to + at, piece[v]);
        }
    }
}

// Every thread of a CTA has stored what it pushes: count the CTA, and say so when it is the last one.
__device__ __forceinline__ void arrive(uint32_t* arrived, int ctas, uint32_t* flag, const uint32_t* epoch) {
    __syncthreads();
    if (threadIdx.x != 0) return;
    ptx::fence::system();
    if (ptx::atom::counted_relaxed(arrived, ctas - 1) != ctas - 1) return;
    ptx::fence::system();
    ptx::store::relaxed_system(flag, ptx::load::cached_4(epoch));
}
