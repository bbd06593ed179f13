// griddepcontrol: programmatic dependent launch. PTX ISA 9.0, 9.7.13.13.
#pragma once
#include "ptx/types.cuh"

namespace ptx::griddepcontrol {

// Wait until the grids this one depends on have completed and their memory is visible (griddepcontrol.wait).
__device__ __forceinline__ void wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Let the dependent grids start once every CTA has said so or ended (griddepcontrol.launch_dependents).
__device__ __forceinline__ void launch_dependents() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace ptx::griddepcontrol
