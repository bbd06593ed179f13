// What the CTAs of a cluster that share a ring of stages do together: begin, end, hand stages back.
#pragma once
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"
#include "schedule.cuh"

// Barriers are initialised before any CTA of the cluster arrives on them, and live until all have.
__device__ __forceinline__ void sync_cluster() {
    if constexpr (schedule::cluster == 1) {
        __syncthreads();
    } else {
        ptx::cluster::arrive();
        ptx::cluster::wait();
    }
}

__device__ __forceinline__ void finish() {
    if constexpr (schedule::cluster > 1) {
        __syncwarp();
        sync_cluster();
    }
}

// A warp has read a stage: it arrives at the stage's empty barrier in every CTA whose producer writes to it.
__device__ __forceinline__ void release_cluster(uint64_t& empty) {
    const int lane = threadIdx.x % 32;
    if constexpr (schedule::cluster == 1) {
        if (lane == 0) ptx::mbarrier::arrive(empty);
    } else {
        if (lane < schedule::cluster) ptx::mbarrier::arrive_cluster(empty, lane);
    }
}
