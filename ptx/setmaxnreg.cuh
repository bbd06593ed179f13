// setmaxnreg: registers move between warpgroups. PTX ISA 9.0, 9.7.19.5.
#pragma once
#include "ptx/types.cuh"

namespace ptx::setmaxnreg {

// Wait for enough registers, then own `registers` a thread (setmaxnreg.inc).
template <int registers>
__device__ __forceinline__ void inc() {
    static_assert(registers >= 24 && registers <= 256 && registers % 8 == 0, "24 to 256 in steps of 8");
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers) : "memory");
}

// Keep `registers` a thread and release the others (setmaxnreg.dec).
template <int registers>
__device__ __forceinline__ void dec() {
    static_assert(registers >= 24 && registers <= 256 && registers % 8 == 0, "24 to 256 in steps of 8");
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers) : "memory");
}

}  // namespace ptx::setmaxnreg
