// Narrow weights to pairs of bf16, in registers: exact.
#pragma once
#include "ptx/packed.cuh"

// Two fp8, bytes `first` and `first + 1` of a word, as two bf16, the lower one first. Exponent and significand move from
// 4 and 3 bits to 8 and 7, which leaves the bias to a multiplication: it makes subnormals right too. NaN becomes 480.
__device__ __forceinline__ uint32_t bf16_of_fp8(uint32_t word, int first) {
    constexpr uint32_t SIGNS = 0x80008000, SIZES = 0x07f007f0;
    constexpr uint32_t TWO_TO_120 = 0x7b807b80;  // 127 - 7: the difference of the biases
    const uint32_t halves = __byte_perm(word, 0, first == 0 ? 0x1404 : 0x3424);
    return ptx::packed::mul_bf16(halves & SIGNS | halves >> 4 & SIZES, TWO_TO_120);
}

// Register `i` of an A fragment of mma.m16n8k16 from a word of packed int4 (sim/int4.py): q as bf16. A significand of
// seven bits has a unit of one in 128 to 255, so q is written there, and 128 subtracted.
__device__ __forceinline__ uint32_t bf16_of_int4(uint32_t word, int i) {
    constexpr uint32_t NIBBLES = 0x000f000f, FROM_128 = 0x43004300;
    return ptx::packed::sub_bf16(word >> 4 * i & NIBBLES | FROM_128, FROM_128);
}
