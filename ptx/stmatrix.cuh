// stmatrix: 8x8 matrices of 16-bit elements from a warp's registers to shared memory. PTX ISA 9.0, 9.7.14.5.16.
#pragma once
#include "ptx/address.cuh"

namespace ptx::stmatrix {

// Store four matrices; lane l gives the address of row l % 8 of matrix l / 8 (stmatrix.x4).
__device__ __forceinline__ void x4(uint32_t row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(a), "r"(b), "r"(c),
                 "r"(d)
                 : "memory");
}
__device__ __forceinline__ void x4(void* row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    x4(address::shared(row), a, b, c, d);
}

// Store two matrices transposed; lane l < 16 gives the address of row l % 8 of matrix l / 8 as it lies in memory
// (stmatrix.x2.trans).
__device__ __forceinline__ void x2_transposed(void* row, uint32_t a, uint32_t b) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address::shared(row)), "r"(a),
                 "r"(b)
                 : "memory");
}

}  // namespace ptx::stmatrix
