// sub: of two pairs of bf16, or of fp16, in 32-bit words. PTX ISA 9.0, 9.7.4.2.
#pragma once
#include "ptx/types.cuh"

namespace ptx::sub {

// a - b in both halves, rounded to nearest even (sub.rn.bf16x2).
__device__ __forceinline__ uint32_t pair_of_bf16(uint32_t a, uint32_t b) {
    uint32_t difference;
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
    return difference;
}

// The same of fp16 (sub.rn.f16x2).
__device__ __forceinline__ uint32_t pair_of_fp16(uint32_t a, uint32_t b) {
    uint32_t difference;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
    return difference;
}

}  // namespace ptx::sub
