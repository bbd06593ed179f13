// A ring of stages that TMA fills: its barriers, where it starts.
#pragma once
#include "lab/kernels/common/ring_position.cuh"
#include "lab/kernels/common/raster.cuh"
#include "ptx/address.cuh"
#include "ptx/fence.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule.cuh"

constexpr int WARP = 32;
constexpr int WARPGROUP = 128;
constexpr int ALIGNMENT = 1024;  // bytes, of a tile with the 128-byte swizzle

// This thread's warpgroup. The compiler knows it to be one number for a warp, and keeps what follows from it in uniform
// registers, where wgmma's descriptors must be: else it moves them there before each.
__device__ __forceinline__ int warpgroup_index() { return __shfl_sync(0xffffffffu, int(threadIdx.x) / WARPGROUP, 0); }

// One thread fetches the tensor maps and initialises the ring's barriers: `full` awaits one arrival and the bytes of a
// stage, `empty` one of each of `readers` warps. The CTA, and its cluster, must meet before anyone else uses them.
template <typename Shared>
__device__ __forceinline__ void init_ring(Shared& shared, const TensorMap& x, const TensorMap& w, const TensorMap& y,
                                          int readers) {
    ptx::tma::prefetch(x);
    ptx::tma::prefetch(w);
    ptx::tma::prefetch(y);
    for (int stage = 0; stage < schedule::stages; ++stage) {
        ptx::mbarrier::init(shared.full[stage], 1);
        ptx::mbarrier::init(shared.empty[stage], readers);
    }
    ptx::fence::mbarrier_init();
}

// Dynamic shared memory from its first 1024-byte boundary on: what a tile with the 128-byte swizzle needs.
template <typename Shared>
__device__ __forceinline__ Shared& aligned(uint8_t* dynamic) {
    const uint32_t past = ptx::address::shared(dynamic) % ALIGNMENT;
    return *reinterpret_cast<Shared*>(dynamic + (ALIGNMENT - past) % ALIGNMENT);
}
