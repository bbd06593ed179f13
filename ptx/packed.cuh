// mul, sub on .bf16x2: two bf16 in one 32-bit word, subnormals kept. PTX ISA 9.0, 9.7.5 (sub.bf16x2, mul.bf16x2).
#pragma once
#include "ptx/types.cuh"

namespace ptx::packed {

// The products of both halves, each rounded to nearest even (mul.rn.bf16x2).
__device__ __forceinline__ uint32_t mul_bf16(uint32_t a, uint32_t b) {
    uint32_t product;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

// The differences of both halves, each rounded to nearest even (sub.rn.bf16x2).
__device__ __forceinline__ uint32_t sub_bf16(uint32_t a, uint32_t b) {
    uint32_t difference;
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
    return difference;
}

}  // namespace ptx::packed
