// Wrong: only half of the warps reach the barrier of the whole CTA.
#include "schedule.cuh"

extern "C" __global__ void divergent_barrier(const int* x, int* y) {
    __shared__ int half[32];
    if (threadIdx.x < 32) {
        half[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        y[threadIdx.x] = half[31 - threadIdx.x];
        __syncthreads();
    } else {
        if (schedule::fixed) __syncthreads();
        y[threadIdx.x] = x[threadIdx.x];
        if (schedule::fixed) __syncthreads();
    }
}
