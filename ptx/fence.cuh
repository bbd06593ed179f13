// fence: ordering between proxies and of barrier initialisation. PTX ISA 9.0, 9.7.13.4.
#pragma once
#include "ptx/types.cuh"

namespace ptx::fence {

// Shared memory that this thread wrote is visible to TMA and wgmma from here (fence.proxy.async).
__device__ __forceinline__ void proxy_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Initialised mbarriers are visible to the cluster and to TMA from here (fence.mbarrier_init).
__device__ __forceinline__ void mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// What this thread wrote, or saw written, is seen by all GPUs before what it writes from here (fence.acq_rel.sys).
__device__ __forceinline__ void system() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

}  // namespace ptx::fence
