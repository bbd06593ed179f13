// Queries and weights as fragments of a in fp8: one term each where queries are fp8, else two, of which the second is what
// the first leaves, so that together they have eight significant bits, as bf16 has.
#pragma once
#include "lab/kernels/attention/_fp8_stream.cuh"
#include "lab/kernels/attention/_softmax.cuh"
#include "ptx/barrier.cuh"
#include "ptx/convert.cuh"
#include "ptx/sub.cuh"
#include "ptx/wgmma.cuh"

constexpr int MMA_K = 32;
constexpr int STEPS = problem::head_dim / MMA_K;  // along a row of queries, and along a block's keys
constexpr int TERMS = sizeof(Element) == 1 ? 1 : 2;  // bf16 is two

using Fragments = uint32_t[STEPS][4];  // 64 rows of 128 bytes: registers 0 and 1 are rows g and g + 8, 2 and 3 16 columns on
using Scores = float[schedule::block_n / 2];
using Values = float[problem::head_dim / 2];

// Four fp8 in a word.
__device__ __forceinline__ uint32_t four(uint16_t low, uint16_t high) { return uint32_t(high) << 16 | low; }

// A thread's scores, weights by now, as terms: columns in the order in which keys of turned values come.
__device__ __forceinline__ void pack(Fragments (&a)[TERMS], const Scores& weights) {
#pragma unroll
    for (int i = 0; i < 4 * STEPS; ++i) {
        const float* from = &weights[i / 2 * 8 + i % 2 * 2];  // of 16 columns, rows g or g + 8
        const uint16_t low = ptx::convert::pair_fp8(from[0], from[1]), high = ptx::convert::pair_fp8(from[4], from[5]);
        a[0][i / 4][i % 4] = four(low, high);
        if constexpr (TERMS == 2) {
            const auto rest = [](const float* pair, uint16_t first) {
                const uint32_t whole = ptx::convert::pair<fp16>(pair[0], pair[1]);
                return ptx::convert::pair_fp8(ptx::sub::pair_of_fp16(whole, ptx::convert::widen_fp8(first)));
            };
            a[1][i / 4][i % 4] = four(rest(from, low), rest(from + 4, high));
        }
    }
}

// 64 rows of queries as a of the scores' product, from row `first` of the tile on. Fragments where they are fp8; others are
// split to terms in place: the first in place of the first box of bf16, the second of the second one.
struct Queries {
    Shared& shared;
    const int first;
    Fragments a;

    __device__ __forceinline__ Queries(Shared& shared, int first) : shared(shared), first(first) {}

    // Queries that have landed; `rows` become what scores of either of a thread's rows are to be multiplied by.
    __device__ __forceinline__ void receive(float (&rows)[2]) {
        const int lane = threadIdx.x % WARP, warp_row = first + threadIdx.x % WARPGROUP / WARP * 16;
        if constexpr (TERMS == 1) {
            rows[0] = rows[1] = 1;
            const int row = warp_row + lane % 16;
#pragma unroll
            for (int step = 0; step < STEPS; ++step)
                ptx::ldmatrix::x4(a[step],
                                  ptx::address::shared(&shared.q[0][row][((2 * step + lane / 16) ^ row % 8) * 16]));
            ptx::wgmma::hold(a);
            release();
        } else {
#pragma unroll
            for (int r = 0; r < 2; ++r) rows[r] = split(warp_row + lane / 4 + 8 * r);
            ptx::fence::proxy_async_shared();
            ptx::barrier::sync<WARPGROUP>(1 + first / MMA_M);  // a wgmma reads the rows of all four warps
        }
    }

    // There are no further blocks.
    __device__ __forceinline__ void end() const {
        if constexpr (TERMS == 2) release();
    }

    __device__ __forceinline__ void release() const {
        __syncwarp();
        if (threadIdx.x % WARP == 0) ptx::mbarrier::arrive(shared.q_empty);
    }

    // scores = q k^T, queued.
    __device__ __forceinline__ void multiply(Scores& scores, const Row* keys) const {
        const uint64_t b = ptx::wgmma::descriptor_k_major_128b(keys);
#pragma unroll
        for (int i = 0; i < TERMS * STEPS; ++i) {
            const uint64_t part = ptx::wgmma::advance(b, i % STEPS * MMA_K);
            if constexpr (TERMS == 1) {
                ptx::wgmma::mma<fp8>(scores, a[i], part, i > 0);
            } else {
                const uint64_t q = ptx::wgmma::descriptor_k_major_128b(shared.q[i / STEPS][first]);
                ptx::wgmma::mma<fp8>(scores, ptx::wgmma::advance(q, i % STEPS * MMA_K), part, i > 0);
            }
        }
        ptx::wgmma::commit_group();
    }

    // A row, of which this thread has four columns of every 16. It is scaled by a power of two that makes its largest 128
    // to 256, so that the second term is not too small for fp8; a row that is not finite becomes NaN. Returns the inverse.
    __device__ __forceinline__ float split(int row) const {
        constexpr int RUNS = problem::head_dim / GROUP;
        const int column = threadIdx.x % 4 * 4;  // of each run
        float values[RUNS][4];
        uint32_t largest = 0;
#pragma unroll
        for (int run = 0; run < RUNS; ++run) {
            const int byte = (run * GROUP + column) * int(sizeof(Element));
            const int at = ((byte % BOX_BYTES / 16) ^ row % 8) * 16 + byte % 16;
            const uint2 pairs = *reinterpret_cast<const uint2*>(&shared.q[byte / BOX_BYTES][row][at]);
            const uint32_t words[2] = {pairs.x, pairs.y};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t word = words[i / 2];
                values[run][i] = i % 2 ? ptx::convert::high<Element>(word) : ptx::convert::low<Element>(word);
                largest = max(largest, __float_as_uint(values[run][i]) & 0x7fffffffu);
            }
        }
        largest = row_max(largest);
        __syncwarp();
        constexpr uint32_t LEAST = 8, SPECIAL = 255, SIZE = 134;  // exponents of floats; 2^7 has 134
        const uint32_t exponent = max(largest >> 23, LEAST);
        const float factor = __uint_as_float(exponent == SPECIAL ? 0x7fffffffu : (127 + SIZE - exponent) << 23);
#pragma unroll
        for (int run = 0; run < RUNS; ++run) {
            uint16_t terms[2][2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float x = values[run][2 * i] * factor, y = values[run][2 * i + 1] * factor;
                terms[0][i] = ptx::convert::pair_fp8(x, y);
                const uint32_t wide = ptx::convert::widen_fp8(terms[0][i]);
                terms[1][i] = ptx::convert::pair_fp8(x - ptx::convert::low<fp16>(wide), y - ptx::convert::high<fp16>(wide));
            }
#pragma unroll
            for (int term = 0; term < 2; ++term)
                *reinterpret_cast<uint32_t*>(&shared.q[term][row][(run ^ row % 8) * 16 + column]) =
                    four(terms[term][0], terms[term][1]);
        }
        return __uint_as_float((exponent + 127 - SIZE) << 23);
    }
};
