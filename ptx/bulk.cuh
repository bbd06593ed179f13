// cp.async.bulk: contiguous copies, groups of this thread's bulk stores. PTX ISA 9.0, 9.7.9.25.4 and 9.7.9.27.2.
#pragma once
#include "ptx/address.cuh"

namespace ptx::bulk {

// Copy `bytes`, a multiple of 16 as both addresses are, from global to shared memory; they complete on `barrier`
// (cp.async.bulk, global to shared::cluster).
__device__ __forceinline__ void load(void* to, const void* from, uint32_t bytes, uint64_t& barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            address::shared(to)),
        "l"(from), "r"(bytes), "r"(address::shared(&barrier))
        : "memory");
}

// The same, leaving lines in L2 as `policy` says (cp.async.bulk.L2::cache_hint).
__device__ __forceinline__ void load(void* to, const void* from, uint32_t bytes, uint64_t& barrier, uint64_t policy) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
            address::shared(to)),
        "l"(from), "r"(bytes), "r"(address::shared(&barrier)), "l"(policy)
        : "memory");
}

// Close the group of this thread's bulk stores so far (cp.async.bulk.commit_group).
__device__ __forceinline__ void commit_group() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Wait until at most `pending` groups have not yet written their destination (cp.async.bulk.wait_group).
template <int pending>
__device__ __forceinline__ void wait_group() {
    static_assert(pending >= 0, "a number of groups");
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
}

// Wait until at most `pending` groups have not yet read their source (cp.async.bulk.wait_group.read).
template <int pending>
__device__ __forceinline__ void wait_group_read() {
    static_assert(pending >= 0, "a number of groups");
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

}  // namespace ptx::bulk
