// cp.async: copies of 4 or 16 bytes a thread from global to shared memory that do not wait. PTX ISA 9.0, 9.7.9.25.3.
#pragma once
#include "ptx/address.cuh"

namespace ptx::cp_async {

// Copy the first `nbytes` of 16 bytes, past L1, and fill the rest with zeros; nothing is read where `nbytes` is 0
// (cp.async.cg).
__device__ __forceinline__ void copy_16(uint32_t to, const void* from, int nbytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(nbytes) : "memory");
}

// The same for a stream: L2 is to bring the 128 bytes around them from memory (cp.async.cg.L2::128B).
__device__ __forceinline__ void stream_16(uint32_t to, const void* from, int nbytes = 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(nbytes)
                 : "memory");
}

// The same as copy_16 for 4 or 8 bytes, which go through L1 (cp.async.ca).
__device__ __forceinline__ void copy_4(uint32_t to, const void* from, int nbytes = 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(nbytes) : "memory");
}
__device__ __forceinline__ void copy_8(uint32_t to, const void* from, int nbytes = 8) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(nbytes) : "memory");
}

// Close the group of this thread's copies so far (cp.async.commit_group).
__device__ __forceinline__ void commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most `pending` groups of this thread are unfinished (cp.async.wait_group).
template <int pending>
__device__ __forceinline__ void wait_group() {
    static_assert(pending >= 0, "0 groups or more");
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace ptx::cp_async
