// cp.async.bulk.tensor: the tensor memory accelerator. PTX ISA 9.0, 9.7.9.27.1.
// Coordinates are elements, innermost dimension first as the instruction has them: `column` before `row`.
#pragma once
#include "ptx/address.cuh"

namespace ptx::tma {

// Fetch the 128 bytes of a tensor map ahead of its first use (prefetch.tensormap).
__device__ __forceinline__ void prefetch(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Load the box at (row, column) to shared memory; its bytes complete on `barrier` (cp.async.bulk.tensor.2d, load).
__device__ __forceinline__ void load_2d(void* to, const TensorMap& map, int column, int row, uint64_t& barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3}], [%4];" ::"r"(address::shared(to)),
        "l"(&map), "r"(column), "r"(row), "r"(address::shared(&barrier))
        : "memory");
}

// Bring the box at (row, column) to L2 ahead of its load (cp.async.bulk.prefetch.tensor).
__device__ __forceinline__ void prefetch_2d(const TensorMap& map, int column, int row) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(&map), "r"(column), "r"(row)
                 : "memory");
}

// The same for a box of three dimensions, `slice` the outermost (cp.async.bulk.tensor.3d, load).
__device__ __forceinline__ void load_3d(void* to, const TensorMap& map, int column, int row, int slice,
                                        uint64_t& barrier) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(address::shared(to)),
        "l"(&map), "r"(column), "r"(row), "r"(slice), "r"(address::shared(&barrier))
        : "memory");
}

// Load the box to the same place of every CTA whose bit is set in `ctas`; its bytes complete on each one's barrier
// (cp.async.bulk.tensor.2d, load, multicast::cluster).
__device__ __forceinline__ void load_2d_multicast(void* to, const TensorMap& map, int column, int row,
                                                  uint64_t& barrier, uint16_t ctas) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(address::shared(to)),
        "l"(&map), "r"(column), "r"(row), "r"(address::shared(&barrier)), "h"(ctas)
        : "memory");
}

// The same for a box of three dimensions (cp.async.bulk.tensor.3d, load, multicast::cluster).
__device__ __forceinline__ void load_3d_multicast(void* to, const TensorMap& map, int column, int row, int slice,
                                                  uint64_t& barrier, uint16_t ctas) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(address::shared(to)),
        "l"(&map), "r"(column), "r"(row), "r"(slice), "r"(address::shared(&barrier)), "h"(ctas)
        : "memory");
}

// Store the box at (row, column) from shared memory, clipped to the tensor, in this thread's bulk group
// (cp.async.bulk.tensor.2d, store).
__device__ __forceinline__ void store_2d(const TensorMap& map, const void* from, int column, int row) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
                 "r"(column), "r"(row), "r"(address::shared(from))
                 : "memory");
}

}  // namespace ptx::tma
