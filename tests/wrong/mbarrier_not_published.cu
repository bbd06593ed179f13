// Wrong: a warp uses a barrier that it knows another warp to have initialised, but no fence orders the two.
#include "ptx/mbarrier.cuh"
#include "schedule.cuh"

extern "C" __global__ void mbarrier_not_published(const int* x, int* y, unsigned* ready) {
    __shared__ int row[64];
    __shared__ uint64_t written;
    if (threadIdx.x == 0) {
        ptx::mbarrier::init(written, 64);
        if (schedule::fixed) __threadfence();
        atomicExch(ready, 1u);
    }
    if (threadIdx.x == 32) {
        while (atomicAdd(ready, 0u) == 0) {
        }
        if (schedule::fixed) __threadfence();
    }
    __syncwarp();
    row[threadIdx.x] = x[threadIdx.x];
    ptx::mbarrier::arrive(written);
    ptx::mbarrier::wait(written, 0);
    y[threadIdx.x] = row[63 - threadIdx.x];
}
