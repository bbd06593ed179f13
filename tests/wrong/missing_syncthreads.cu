// Wrong: a thread reads what another warp writes to shared memory, with no barrier between.
#include "schedule.cuh"

extern "C" __global__ void missing_syncthreads(const int* x, int* y) {
    __shared__ int reversed[64];
    reversed[63 - threadIdx.x] = x[threadIdx.x];
    if (schedule::fixed) __syncthreads();
    y[threadIdx.x] = reversed[threadIdx.x];
}
