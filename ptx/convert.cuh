// cvt: between number formats. PTX ISA 9.0, 9.7.9.21.
#pragma once
#include "ptx/types.cuh"

namespace ptx::convert {

__device__ __forceinline__ float to_float(float value) { return value; }

// bf16 is the upper half of a float: exact.
__device__ __forceinline__ float to_float(bf16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }

// Exact (cvt.f32.f16).
__device__ __forceinline__ float to_float(fp16 value) {
    float widened;
    asm("cvt.f32.f16 %0, %1;" : "=f"(widened) : "h"(value.bits));
    return widened;
}

// The two fp8 of one 16-bit word as two fp16, lower half first: exact (cvt.rn.f16x2.e4m3x2).
__device__ __forceinline__ uint32_t widen_fp8(uint16_t pair) {
    uint32_t widened;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(widened) : "h"(pair));
    return widened;
}

// The same of the upper half of a word, which costs no shift.
__device__ __forceinline__ uint32_t widen_upper_fp8(uint32_t word) {
    uint32_t widened;
    asm("{\n\t.reg .b16 lower, upper;\n\tmov.b32 {lower, upper}, %1;\n\tcvt.rn.f16x2.e4m3x2 %0, upper;\n\t}"
        : "=r"(widened)
        : "r"(word));
    return widened;
}

__device__ __forceinline__ float to_float(fp8 value) { return to_float(fp16{uint16_t(widen_fp8(value.bits))}); }

// The two T of one 32-bit word, lower half first: exact.
template <typename T>
__device__ float low(uint32_t pair);
template <typename T>
__device__ float high(uint32_t pair);

template <>
__device__ __forceinline__ float low<bf16>(uint32_t pair) { return __uint_as_float(pair << 16); }
template <>
__device__ __forceinline__ float high<bf16>(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
template <>
__device__ __forceinline__ float low<fp16>(uint32_t pair) { return to_float(fp16{uint16_t(pair)}); }
template <>
__device__ __forceinline__ float high<fp16>(uint32_t pair) { return to_float(fp16{uint16_t(pair >> 16)}); }

// Two floats rounded to nearest even in one 32-bit word of two T, `low` in the lower half.
template <typename T>
__device__ uint32_t pair(float low, float high);

template <>
__device__ __forceinline__ uint32_t pair<bf16>(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

template <>
__device__ __forceinline__ uint32_t pair<fp16>(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// Two floats rounded to nearest even and clamped to 448 in one 16-bit word, `low` in the lower half.
__device__ __forceinline__ uint16_t pair_fp8(float low, float high) {
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}

// Two fp16 of one 32-bit word, rounded and clamped likewise (cvt.rn.satfinite.e4m3x2.f16x2).
__device__ __forceinline__ uint16_t pair_fp8(uint32_t pair_of_fp16) {
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f16x2 %0, %1;" : "=h"(pair) : "r"(pair_of_fp16));
    return pair;
}

__device__ __forceinline__ void from_float(float& to, float value) { to = value; }

// Round to nearest even.
__device__ __forceinline__ void from_float(bf16& to, float value) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(value));
}
__device__ __forceinline__ void from_float(fp16& to, float value) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(value));
}
__device__ __forceinline__ void from_float(fp8& to, float value) { to.bits = uint8_t(pair_fp8(value, 0)); }

}  // namespace ptx::convert
