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

// Register `i` of an A fragment of mma.m16n8k16 from a word of packed int4 (sim/int4.py): q + INT4_BIAS as bf16. Numbers
// from 16 to 31 have q in the upper four bits of their significand; whoever sums takes the bias away. `significands` is
// INT4_SIGNIFICANDS, in a register.
constexpr float INT4_BIAS = 16;
constexpr uint32_t INT4_SIGNIFICANDS = 0x00780078;
__device__ __forceinline__ uint32_t biased_bf16_of_int4(uint32_t word, int i, uint32_t significands) {
    constexpr uint32_t SIXTEENS = 0x41804180;
    const uint32_t placed = i == 0 ? word << 3 : word >> (4 * i - 3);
    return placed & significands | SIXTEENS;
}
