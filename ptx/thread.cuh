// %tid: which thread this is. PTX ISA 9.0, 10.1.
#pragma once
#include "ptx/types.cuh"

namespace ptx::thread {

// threadIdx.x, read anew each time (mov from %tid.x): what is computed from it is not kept in registers across a loop.
__device__ __forceinline__ uint32_t index() {
    uint32_t index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
}

}  // namespace ptx::thread
