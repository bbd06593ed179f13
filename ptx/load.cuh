// ld.global: vector loads with cache hints. PTX ISA 9.7.9.8.
#pragma once
#include "ptx/types.cuh"

namespace ptx::load {

// 16 bytes through the read-only path that leave no line in L1, for data that is read once; zeros where not `inside`.
__device__ __forceinline__ Vector16 nc_no_allocate(const void* address, bool inside) {
    Vector16 v;
    asm volatile(
        "{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %5, 0;\n\t"
        "mov.u32 %0, 0;\n\tmov.u32 %1, 0;\n\tmov.u32 %2, 0;\n\tmov.u32 %3, 0;\n\t"
        "@p ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
        : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
        : "l"(address), "r"(uint32_t(inside)));
    return v;
}

// The same, kept in L1: for data that other warps of the SM read too.
__device__ __forceinline__ Vector16 nc(const void* address, bool inside) {
    Vector16 v;
    asm volatile(
        "{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %5, 0;\n\t"
        "mov.u32 %0, 0;\n\tmov.u32 %1, 0;\n\tmov.u32 %2, 0;\n\tmov.u32 %3, 0;\n\t"
        "@p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
        : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
        : "l"(address), "r"(uint32_t(inside)));
    return v;
}

}  // namespace ptx::load
