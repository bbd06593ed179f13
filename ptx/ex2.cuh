// ex2: powers of two. PTX ISA 9.0, 9.7.3.22.
#pragma once
#include "ptx/types.cuh"

namespace ptx::ex2 {

// 2^exponent to within 2^-22.5 of itself, subnormal results as 0; 0 for -inf (ex2.approx.ftz.f32).
__device__ __forceinline__ float approx(float exponent) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(exponent));
    return power;
}

}  // namespace ptx::ex2
