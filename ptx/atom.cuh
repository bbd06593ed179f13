// atom: read, change and write back at once. PTX ISA 9.0, 9.7.13.6.
#pragma once
#include "ptx/types.cuh"

namespace ptx::atom {

// Count up from 0 to `last`, then from 0 again; returns the number before. What this CTA wrote before a barrier is
// visible to whom counts after it (atom.acq_rel.gpu.inc).
__device__ __forceinline__ uint32_t count(uint32_t* counter, uint32_t last) {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(last) : "memory");
    return before;
}

// The same of one that does not learn how many there were: nothing waits for an answer (red.release.gpu.inc).
__device__ __forceinline__ void count_released(uint32_t* counter, uint32_t last) {
    asm volatile("red.release.gpu.global.inc.u32 [%0], %1;" ::"l"(counter), "r"(last) : "memory");
}

// One that has nothing for the others to see, and nothing to learn from them (red.relaxed.gpu.inc).
__device__ __forceinline__ void count_relaxed(uint32_t* counter, uint32_t last) {
    asm volatile("red.relaxed.gpu.global.inc.u32 [%0], %1;" ::"l"(counter), "r"(last) : "memory");
}

// Likewise, and it returns the number before; fences around it order what there is to see (atom.relaxed.gpu.inc).
__device__ __forceinline__ uint32_t counted_relaxed(uint32_t* counter, uint32_t last) {
    uint32_t before;
    asm volatile("atom.relaxed.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(last) : "memory");
    return before;
}

}  // namespace ptx::atom
