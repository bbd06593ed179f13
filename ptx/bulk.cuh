// cp.async.bulk groups: this thread's bulk stores, and waiting for them. PTX ISA 9.0, 9.7.9.27.2.
#pragma once
#include "ptx/types.cuh"

namespace ptx::bulk {

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
