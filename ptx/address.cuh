// cvta, mapa: addresses in state spaces. PTX ISA 9.0, 9.7.9.20 and 9.7.9.23.
#pragma once
#include "ptx/types.cuh"

namespace ptx::address {

// The 32-bit address in shared::cta of a generic pointer (cvta.to.shared).
__device__ __forceinline__ uint32_t shared(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The shared::cluster address of the same variable in the CTA of rank `cta` of the cluster (mapa).
__device__ __forceinline__ uint32_t shared_of_cta(const void* pointer, uint32_t cta) {
    uint32_t address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared(pointer)), "r"(cta));
    return address;
}

}  // namespace ptx::address
