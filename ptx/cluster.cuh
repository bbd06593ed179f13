// barrier.cluster and the cluster's special registers. PTX ISA 9.0, 9.7.13.3 and %cluster_ctarank in 10.
#pragma once
#include "ptx/types.cuh"

namespace ptx::cluster {

// This CTA's rank in its cluster (%cluster_ctarank).
__device__ __forceinline__ uint32_t rank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Arrive, with everything this thread wrote, without waiting (barrier.cluster.arrive).
__device__ __forceinline__ void arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

// Arrive with nothing that the others need to see, and so without a fence (barrier.cluster.arrive.relaxed).
__device__ __forceinline__ void arrive_relaxed() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

// Wait until every thread of the cluster has arrived (barrier.cluster.wait).
__device__ __forceinline__ void wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

}  // namespace ptx::cluster
