// barrier.sync, barrier.arrive: the CTA's 16 named barriers; barrier 0 is __syncthreads(). PTX ISA 9.0, 9.7.13.1.
#pragma once
#include "ptx/types.cuh"

namespace ptx::barrier {

// Wait on barrier `id` until `threads` threads have arrived (barrier.sync).
template <int threads>
__device__ __forceinline__ void sync(int id) {
    static_assert(threads > 0 && threads <= 1024 && threads % 32 == 0, "whole warps of one CTA");
    asm volatile("barrier.sync %0, %1;" ::"r"(id), "n"(threads) : "memory");
}

// Arrive on barrier `id` without waiting (barrier.arrive).
template <int threads>
__device__ __forceinline__ void arrive(int id) {
    static_assert(threads > 0 && threads <= 1024 && threads % 32 == 0, "whole warps of one CTA");
    asm volatile("barrier.arrive %0, %1;" ::"r"(id), "n"(threads) : "memory");
}

}  // namespace ptx::barrier
