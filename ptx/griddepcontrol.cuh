// griddepcontrol: programmatic dependent launch. PTX ISA 9.0, 9.7.13.13.
// A GPU before sm_90 has none, and no launch there overlaps the one before: there both do nothing.
#pragma once
#include "ptx/types.cuh"

namespace ptx::griddepcontrol {

// Wait until the grids this one depends on have completed and their memory is visible (griddepcontrol.wait).
__device__ __forceinline__ void wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Let the dependent grids start once every CTA has said so or ended (griddepcontrol.launch_dependents).
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace ptx::griddepcontrol
