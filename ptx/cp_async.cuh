// cp.async: copies from global to shared memory that pass no register and are waited for in groups. PTX ISA 9.7.9.25.3.
#pragma once
#include "ptx/address.cuh"

namespace ptx::cp_async {

// 16 bytes, past L1 (.cg).
__device__ __forceinline__ void copy16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address::shared(to)), "l"(from) : "memory");
}

// The same where `inside`, zeros elsewhere; nothing is then read.
__device__ __forceinline__ void copy16_if(void* to, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address::shared(to)), "l"(from),
                 "r"(inside ? 16 : 0) : "memory");
}

// 4 bytes, through L1 (.ca).
__device__ __forceinline__ void copy4(void* to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address::shared(to)), "l"(from) : "memory");
}

// The same where `inside`, zeros elsewhere; nothing is then read.
__device__ __forceinline__ void copy4_if(void* to, const void* from, bool inside) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address::shared(to)), "l"(from),
                 "r"(inside ? 4 : 0) : "memory");
}

// All copies of this thread since the last commit become a group; it may be empty.
__device__ __forceinline__ void commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most `pending` of this thread's latest groups are under way.
template <int pending>
__device__ __forceinline__ void wait_group() {
    static_assert(pending >= 0, "a number of groups");
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace ptx::cp_async
