// cp.async.bulk: contiguous copies by the bulk engine, and waiting for this thread's stores. PTX ISA 9.0, 9.7.9.25.4.
#pragma once
#include "ptx/address.cuh"

namespace ptx::bulk {

// Copy `nbytes`, a multiple of 16, from global to shared memory; their arrival counts on `barrier`
// (cp.async.bulk.shared::cluster.global).
__device__ __forceinline__ void load(void* to, const void* from, uint32_t nbytes, uint64_t& barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     address::shared(to)),
                 "l"(from), "r"(nbytes), "r"(address::shared(&barrier))
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
