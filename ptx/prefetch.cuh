// prefetch: lines that a later access will find in a cache. PTX ISA 9.0, 9.7.9.15.
#pragma once
#include "ptx/types.cuh"

namespace ptx::prefetch {

// Bring the line of a global address to L2 (prefetch.global.L2).
__device__ __forceinline__ void to_l2(const void* address) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address) : "memory");
}

}  // namespace ptx::prefetch
