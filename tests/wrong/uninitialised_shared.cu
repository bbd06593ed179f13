// Wrong: half of the partial sums are never written, and all of them are added up.
#include "schedule.cuh"

extern "C" __global__ void uninitialised_shared(const int* x, int* y) {
    __shared__ int partial[64];
    if (schedule::fixed || threadIdx.x < 32) partial[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x >= 32) return;
    y[threadIdx.x] = partial[threadIdx.x] + partial[threadIdx.x + 32];
}
