// ld.global: vector loads with cache hints. PTX ISA 9.7.9.8.
#pragma once
#include "ptx/types.cuh"

namespace ptx::load {

// 8 or 16 bytes that leave no line in L1: for data that is read once.
template <int bytes>
__device__ Vector<bytes> no_allocate(const void* address);
template <int bytes>
__device__ Vector<bytes> no_allocate_if(const void* address, bool inside);

template <>
__device__ __forceinline__ Vector<8> no_allocate<8>(const void* address) {
    Vector<8> v;
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
                 : "=r"(v.words[0]), "=r"(v.words[1]) : "l"(address) : "memory");
    return v;
}

template <>
__device__ __forceinline__ Vector16 no_allocate<16>(const void* address) {
    Vector16 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
                 : "l"(address) : "memory");
    return v;
}

// The same where `inside`, zeros elsewhere.
template <>
__device__ __forceinline__ Vector<8> no_allocate_if<8>(const void* address, bool inside) {
    Vector<8> v = {};
    asm volatile(
        "{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %3, 0;\n\t@p ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];\n\t}"
        : "+r"(v.words[0]), "+r"(v.words[1])
        : "l"(address), "r"(uint32_t(inside)) : "memory");
    return v;
}

template <>
__device__ __forceinline__ Vector16 no_allocate_if<16>(const void* address, bool inside) {
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

// 16 bytes of a stream: no line in L1, and L2 is to bring the 128 bytes around them from memory.
__device__ __forceinline__ Vector16 stream(const void* address) {
    Vector16 v;
    asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
                 : "l"(address) : "memory");
    return v;
}

// The same where `inside`, zeros elsewhere.
__device__ __forceinline__ Vector16 stream_if(const void* address, bool inside) {
    Vector16 v = {};
    asm volatile(
        "{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %5, 0;\n\t"
        "@p ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
        : "+r"(v.words[0]), "+r"(v.words[1]), "+r"(v.words[2]), "+r"(v.words[3])
        : "l"(address), "r"(uint32_t(inside)) : "memory");
    return v;
}

// 2, 4 or 8 bytes, kept in L1; zeros where not `inside`.
__device__ __forceinline__ uint16_t cached_2_if(const void* address, bool inside) {
    uint16_t half = 0;
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %2, 0;\n\t@p ld.global.u16 %0, [%1];\n\t}"
                 : "+h"(half) : "l"(address), "r"(uint32_t(inside)) : "memory");
    return half;
}
__device__ __forceinline__ uint32_t cached_4(const void* address) {
    uint32_t word;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(word) : "l"(address) : "memory");
    return word;
}
__device__ __forceinline__ uint32_t cached_4_if(const void* address, bool inside) {
    uint32_t word = 0;
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %2, 0;\n\t@p ld.global.u32 %0, [%1];\n\t}"
                 : "+r"(word) : "l"(address), "r"(uint32_t(inside)) : "memory");
    return word;
}
__device__ __forceinline__ Vector<8> cached_8(const void* address) {
    Vector<8> v;
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.words[0]), "=r"(v.words[1]) : "l"(address) : "memory");
    return v;
}
__device__ __forceinline__ Vector<8> cached_8_if(const void* address, bool inside) {
    Vector<8> v = {};
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %3, 0;\n\t@p ld.global.v2.u32 {%0, %1}, [%2];\n\t}"
                 : "+r"(v.words[0]), "+r"(v.words[1]) : "l"(address), "r"(uint32_t(inside)) : "memory");
    return v;
}

// A word that another CTA of the GPU may write: what that one wrote before it is visible then (ld.acquire.gpu).
__device__ __forceinline__ uint32_t acquire(const uint32_t* address) {
    uint32_t word;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(address) : "memory");
    return word;
}

// The same of one that another GPU may write (ld.acquire.sys).
__device__ __forceinline__ uint32_t acquire_system(const uint32_t* address) {
    uint32_t word;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(word) : "l"(address) : "memory");
    return word;
}

// Two times eight bytes that another GPU may write; each eight are read at once (ld.relaxed.sys).
__device__ __forceinline__ Vector16 relaxed_system(const Vector16* address) {
    uint64_t first, second;
    asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];" : "=l"(first), "=l"(second) : "l"(address) : "memory");
    return {uint32_t(first), uint32_t(first >> 32), uint32_t(second), uint32_t(second >> 32)};
}

}  // namespace ptx::load
