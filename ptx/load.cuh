// ld.global: vector loads with cache hints. PTX ISA 9.7.9.8.
#pragma once
#include "ptx/types.cuh"

namespace ptx::load {

// 16 bytes that leave no line in L1: for data that is read once.
__device__ __forceinline__ Vector16 no_allocate(const void* address) {
    Vector16 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
                 : "l"(address) : "memory");
    return v;
}

// The same where `inside`, zeros elsewhere.
__device__ __forceinline__ Vector16 no_allocate_if(const void* address, bool inside) {
    Vector16 v = {};
    asm volatile(
        "{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %5, 0;\n\t"
        "@p ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
        : "+r"(v.words[0]), "+r"(v.words[1]), "+r"(v.words[2]), "+r"(v.words[3])
        : "l"(address), "r"(uint32_t(inside)) : "memory");
    return v;
}

// 16 bytes, kept in L1: for data that other warps of the SM read too.
__device__ __forceinline__ Vector16 cached(const void* address) {
    Vector16 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
                 : "l"(address) : "memory");
    return v;
}

// The same where `inside`, zeros elsewhere.
__device__ __forceinline__ Vector16 cached_if(const void* address, bool inside) {
    Vector16 v = {};
    asm volatile(
        "{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %5, 0;\n\t"
        "@p ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
        : "+r"(v.words[0]), "+r"(v.words[1]), "+r"(v.words[2]), "+r"(v.words[3])
        : "l"(address), "r"(uint32_t(inside)) : "memory");
    return v;
}

}  // namespace ptx::load
