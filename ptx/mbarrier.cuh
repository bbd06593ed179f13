// mbarrier: barriers in shared memory that count arrivals and asynchronous bytes. PTX ISA 9.0, 9.7.13.15.
#pragma once
#include "ptx/address.cuh"

namespace ptx::mbarrier {

// Make a barrier whose phase completes after `count` arrivals (mbarrier.init).
__device__ __forceinline__ void init(uint64_t& barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address::shared(&barrier)), "r"(count) : "memory");
}

// Arrive once (mbarrier.arrive).
__device__ __forceinline__ void arrive(uint64_t& barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address::shared(&barrier)) : "memory");
}

// Arrive once and announce `bytes` that asynchronous copies will bring (mbarrier.arrive.expect_tx).
__device__ __forceinline__ void arrive_expect_tx(uint64_t& barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address::shared(&barrier)), "r"(bytes)
                 : "memory");
}

// Arrive once on the same barrier of the CTA of rank `cta` of the cluster (mbarrier.arrive on shared::cluster). It hands
// a buffer back that asynchronous reads have left; a release at cluster scope would wait for all of the SM's accesses.
__device__ __forceinline__ void arrive_cluster(uint64_t& barrier, uint32_t cta) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address::shared_of_cta(&barrier, cta)) : "memory");
}

// Whether the phase of this parity has completed; sleeps for a while first (mbarrier.try_wait.parity).
__device__ __forceinline__ bool try_wait_parity(uint64_t& barrier, uint32_t parity) {
    uint32_t done;
    asm volatile(
        "{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(done)
        : "r"(address::shared(&barrier)), "r"(parity)
        : "memory");
    return done != 0;
}

// Wait until the phase of this parity has completed.
__device__ __forceinline__ void wait(uint64_t& barrier, uint32_t parity) {
    while (!try_wait_parity(barrier, parity)) {
    }
}

// The same for a phase that counts what other CTAs of the cluster stored (mbarrier.try_wait.parity.acquire.cluster).
__device__ __forceinline__ bool try_wait_parity_cluster(uint64_t& barrier, uint32_t parity) {
    uint32_t done;
    asm volatile(
        "{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
        "selp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(done)
        : "r"(address::shared(&barrier)), "r"(parity)
        : "memory");
    return done != 0;
}

__device__ __forceinline__ void wait_cluster(uint64_t& barrier, uint32_t parity) {
    while (!try_wait_parity_cluster(barrier, parity)) {
    }
}

}  // namespace ptx::mbarrier
