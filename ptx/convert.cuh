// cvt: between number formats. PTX ISA 9.0, 9.7.9.21.
#pragma once
#include "ptx/types.cuh"

namespace ptx::convert {

__device__ __forceinline__ float to_float(float value) { return value; }

// bf16 is the upper half of a float: exact.
__device__ __forceinline__ float to_float(bf16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }

// The two bf16 of one 32-bit word, lower half first.
__device__ __forceinline__ float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ void from_float(float& to, float value) { to = value; }

// Round to nearest even.
__device__ __forceinline__ void from_float(bf16& to, float value) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(value));
}

// Two floats rounded to one 32-bit word, `low` in the lower half.
__device__ __forceinline__ uint32_t to_bf16x2(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

}  // namespace ptx::convert
