// What the GEMVs on tensor cores share: w is A of mma.m16n8k16, tokens are B.
#pragma once
#include "ptx/mma.cuh"

constexpr int LANES = 32;
constexpr int MMA_M = 16, MMA_N = 8, MMA_K = 16;  // rows of w, tokens, columns of both
constexpr int VECTOR = sizeof(Vector16);

// d += a b, or d = a b where this is the first of a sum.
template <typename T>
__device__ __forceinline__ void multiply_tile(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                              bool first) {
    if (first)
        ptx::mma::m16n8k16_first<T>(d, a, b);
    else
        ptx::mma::m16n8k16<T>(d, a, b);
}
