// Wrong: the last CTA to finish adds up all partial sums, but nothing orders a partial sum before its CTA's arrival.
#include "schedule.cuh"

extern "C" __global__ void split_without_threadfence(const int* x, int* partial, unsigned* arrived, int* y) {
    __shared__ bool last;
    partial[blockIdx.x * 64 + threadIdx.x] = 2 * x[blockIdx.x * 64 + threadIdx.x];
    if (schedule::fixed) __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(arrived, 1u) == gridDim.x - 1;
    __syncthreads();
    if (!last) return;
    if (schedule::fixed) __threadfence();
    int sum = 0;
    for (int cta = 0; cta < gridDim.x; ++cta) sum += partial[cta * 64 + threadIdx.x];
    y[threadIdx.x] = sum;
    if (threadIdx.x == 0) *arrived = 0;
}
