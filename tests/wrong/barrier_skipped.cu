// Wrong: half of the warps go on without the barrier that the others wait at.
#include "schedule.cuh"

extern "C" __global__ void barrier_skipped(const int* x, int* y) {
    __shared__ int half[32];
    if (threadIdx.x < 32) {
        half[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        y[threadIdx.x] = half[31 - threadIdx.x];
    } else {
        if (schedule::fixed) __syncthreads();
        y[threadIdx.x] = half[threadIdx.x - 32];
    }
}
