// Philox4x32-10: random numbers by counter (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).
#pragma once
#include "ptx/types.cuh"

namespace philox {

constexpr int ROUNDS = 10;

__device__ __forceinline__ Vector16 words(uint32_t block, uint32_t draw, uint32_t low, uint32_t high) {
    Vector16 v = {block, draw, 0, 0};
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const uint32_t first = 0xD2511F53u * v.words[0], second = 0xCD9E8D57u * v.words[2];
        v = {__umulhi(0xCD9E8D57u, v.words[2]) ^ v.words[1] ^ low, second,
             __umulhi(0xD2511F53u, v.words[0]) ^ v.words[3] ^ high, first};
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
    return v;
}

}  // namespace philox
