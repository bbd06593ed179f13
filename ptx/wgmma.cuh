// wgmma: matrix multiply-accumulate by a warpgroup, operands in shared memory, or a in registers. PTX ISA 9.0, 9.7.15.
#pragma once
#include "ptx/address.cuh"
#include "ptx/wgmma_shapes.cuh"

namespace ptx::wgmma {

// Accumulators and shared memory written before are ordered before the next mma (wgmma.fence).
__device__ __forceinline__ void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Close the group of this warpgroup's mma so far (wgmma.commit_group).
__device__ __forceinline__ void commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Wait until at most `pending` groups are unfinished (wgmma.wait_group).
template <int pending>
__device__ __forceinline__ void wait_group() {
    static_assert(pending >= 0 && pending <= 7, "0 to 7 groups");
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// Tie accumulators to this place in the program, so that no use of them moves above the wait before it; no instruction.
template <int n>
__device__ __forceinline__ void hold(float (&accumulators)[n]) {
#pragma unroll
    for (int i = 0; i < n; ++i) asm volatile("" : "+f"(accumulators[i]));
}

// The same for fragments of a: what computes them stays above this place.
template <int steps>
__device__ __forceinline__ void hold(uint32_t (&a)[steps][4]) {
#pragma unroll
    for (int i = 0; i < 4 * steps; ++i) asm volatile("" : "+r"(a[i / 4][i % 4]));
}

// Descriptor of a K-major tile at a 1024-byte boundary whose rows are 128 bytes, swizzled by 128 bytes: groups of eight
// rows are 1024 bytes apart (matrix descriptor, 9.7.15.5.1.2.2).
__device__ __forceinline__ uint64_t descriptor_k_major_128b(const void* tile) {
    constexpr uint64_t SWIZZLE_128B = 1ull << 62;
    constexpr uint64_t STRIDE = (1024ull >> 4) << 32;
    return SWIZZLE_128B | STRIDE | ((address::shared(tile) & 0x3ffff) >> 4);
}

// Descriptor of a K-major tile without swizzle whose rows are 32 bytes: two columns of 16 bytes, 128 bytes apart for eight
// rows, which are 256 bytes apart from the next eight.
__device__ __forceinline__ uint64_t descriptor_k_major(const void* tile) {
    constexpr uint64_t STRIDE = (256ull >> 4) << 32, LEADING = (128ull >> 4) << 16;
    return STRIDE | LEADING | ((address::shared(tile) & 0x3ffff) >> 4);
}

// Descriptor of an N-major tile at a 1024-byte boundary, k rows of 128 bytes along n, swizzled by 128 bytes: groups of
// eight rows are 1024 bytes apart, the next columns beyond those 128 bytes `next` bytes.
__device__ __forceinline__ uint64_t descriptor_n_major_128b(const void* tile, int next) {
    constexpr uint64_t SWIZZLE_128B = 1ull << 62;
    constexpr uint64_t STRIDE = (1024ull >> 4) << 32;
    return SWIZZLE_128B | STRIDE | uint64_t(next >> 4) << 16 | ((address::shared(tile) & 0x3ffff) >> 4);
}

// The same tile, `bytes` further along k; the hardware swizzles addresses, so inside 128 bytes an offset is enough.
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, int bytes) { return descriptor + (bytes >> 4); }

}  // namespace ptx::wgmma
