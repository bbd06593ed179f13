// Wrong: shared memory is read while cp.async may still write it.
#include "ptx/address.cuh"
#include "schedule.cuh"

extern "C" __global__ void cp_async_not_awaited(const float* x, float* y) {
    __shared__ alignas(16) float tile[128];
    const uint32_t to = ptx::address::shared(&tile[4 * threadIdx.x]);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x + 4 * threadIdx.x) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
    if (schedule::fixed) asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncwarp();
    y[threadIdx.x] = tile[127 - threadIdx.x];
}
