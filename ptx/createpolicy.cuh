// createpolicy: how long L2 keeps the lines of an access. PTX ISA 9.0, 9.7.9.18.
#pragma once
#include "ptx/types.cuh"

namespace ptx::createpolicy {

// Lines that L2 gives up before all others: for data that is read once (createpolicy.fractional.L2::evict_first).
__device__ __forceinline__ uint64_t evict_first() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

}  // namespace ptx::createpolicy
