// ldmatrix: 8x8 matrices of 16-bit elements from shared memory to a warp's registers. PTX ISA 9.0, 9.7.14.5.15.
// Lane l gives the address of row l % 8 of matrix l / 8, 16 bytes at a multiple of 16, and gets of each matrix the
// elements 2 (l % 4) and the next of row l / 4.
#pragma once
#include "ptx/address.cuh"

namespace ptx::ldmatrix {

// Load four matrices from the shared addresses that the lanes give (ldmatrix.x4).
__device__ __forceinline__ void x4(uint32_t (&matrices)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(row)
                 : "memory");
}

// The same of transposed matrices: element l / 4 of rows 2 (l % 4) and the next (ldmatrix.x4.trans).
__device__ __forceinline__ void x4_transposed(uint32_t (&matrices)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(row)
                 : "memory");
}

}  // namespace ptx::ldmatrix
