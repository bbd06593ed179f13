// st and st.async: stores of vectors, and stores whose arrival an mbarrier counts. PTX ISA 9.0, 9.7.9.11 and 9.7.9.12.
#pragma once
#include "ptx/types.cuh"

namespace ptx::store {

// 4, 8 or 16 bytes at once (st.global).
template <int bytes>
__device__ void global(void* to, const Vector<bytes>& v);

template <>
__device__ __forceinline__ void global<4>(void* to, const Vector<4>& v) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(to), "r"(v.words[0]) : "memory");
}

template <>
__device__ __forceinline__ void global<8>(void* to, const Vector<8>& v) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(v.words[0]), "r"(v.words[1]) : "memory");
}

template <>
__device__ __forceinline__ void global<16>(void* to, const Vector16& v) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.words[0]), "r"(v.words[1]),
                 "r"(v.words[2]), "r"(v.words[3])
                 : "memory");
}

// A word that another GPU may poll (st.relaxed.sys).
__device__ __forceinline__ void relaxed_system(uint32_t* to, uint32_t word) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
}

// Two times eight bytes that another GPU may poll; each eight are written at once.
__device__ __forceinline__ void relaxed_system(Vector16* to, const Vector16& v) {
    const uint64_t first = v.words[0] | uint64_t(v.words[1]) << 32, second = v.words[2] | uint64_t(v.words[3]) << 32;
    asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(first), "l"(second) : "memory");
}

// A word at a shared::cluster address (st.shared::cluster).
__device__ __forceinline__ void cluster(uint32_t to, uint32_t word) {
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(to), "r"(word) : "memory");
}

// Store four floats, aligned to 16 bytes, at a shared::cluster address; their bytes complete on the mbarrier at
// `barrier`, which lies in the same CTA (st.async.shared::cluster).
__device__ __forceinline__ void async_cluster(uint32_t to, const float* four, uint32_t barrier) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
        "f"(four[0]), "f"(four[1]), "f"(four[2]), "f"(four[3]), "r"(barrier)
        : "memory");
}

// The same for one float.
__device__ __forceinline__ void async_cluster(uint32_t to, float one, uint32_t barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(to), "f"(one),
                 "r"(barrier)
                 : "memory");
}

// The same for one word.
__device__ __forceinline__ void async_cluster(uint32_t to, int one, uint32_t barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.s32 [%0], %1, [%2];" ::"r"(to), "r"(one),
                 "r"(barrier)
                 : "memory");
}

}  // namespace ptx::store
