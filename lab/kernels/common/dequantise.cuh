// Narrow weights to pairs of bf16, in registers: exact.
#pragma once
#include "ptx/convert.cuh"
#include "ptx/sub.cuh"

// Two fp8, bytes `first` and `first + 1` of a word, as two bf16, the lower one first: by way of fp16 and float, which
// takes fewer instructions than to move their bits.
__device__ __forceinline__ uint32_t bf16_of_fp8(uint32_t word, int first) {
    const uint32_t wide = ptx::convert::widen_fp8(uint16_t(word >> 8 * first));
    return ptx::convert::pair<bf16>(ptx::convert::low<fp16>(wide), ptx::convert::high<fp16>(wide));
}

// Register `i` of an A fragment of mma.m16n8k16 from a word of packed int4 (sim/int4.py): q + INT4_BIAS as bf16. Numbers
// from 16 to 31 have q in the upper four bits of their significand; whoever sums takes the bias away. lop3 takes one
// constant: the other, INT4_SIGNIFICANDS, is moved to a register each time, unless the caller hides it in one.
constexpr float INT4_BIAS = 16;
constexpr uint32_t INT4_SIGNIFICANDS = 0x00780078;
__device__ __forceinline__ uint32_t biased_bf16_of_int4(uint32_t word, int i,
                                                        uint32_t significands = INT4_SIGNIFICANDS) {
    constexpr uint32_t SIXTEENS = 0x41804180;
    const uint32_t placed = i == 0 ? word << 3 : word >> (4 * i - 3);
    return placed & significands | SIXTEENS;
}

// The same less a zero point, a whole number from 0 to 127, which is there as ZERO_BIAS + zero: exact. Numbers from 128 on
// have q in the lowest four bits of their significand.
constexpr float ZERO_BIAS = 128;
constexpr uint32_t INT4_DIGITS = 0x000f000f;
__device__ __forceinline__ uint32_t bf16_of_int4(uint32_t word, int i, uint32_t zeros, uint32_t digits = INT4_DIGITS) {
    constexpr uint32_t BIASES = 0x43004300;
    return ptx::sub::pair_of_bf16((word >> 4 * i) & digits | BIASES, zeros);
}
