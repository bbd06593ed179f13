// elect.sync: one lane speaks for a warp. PTX ISA 9.0, 9.7.13.14.
#pragma once
#include "ptx/types.cuh"

namespace ptx::elect {

// True in exactly one lane of a full, converged warp (elect.sync).
__device__ __forceinline__ bool one() {
    uint32_t elected;
    asm volatile(
        "{\n\t.reg .pred p;\n\telect.sync _|p, 0xffffffff;\n\tselp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(elected)::"memory");
    return elected != 0;
}

}  // namespace ptx::elect
