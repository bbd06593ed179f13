// Wrong: CTAs add to one sum by a load and a store; the fixed twin adds atomically.
#include "schedule.cuh"

extern "C" __global__ void lost_update(const int* x, int* sum) {
    const int value = x[blockIdx.x * 32 + threadIdx.x];
    if (schedule::fixed)
        atomicAdd(&sum[threadIdx.x], value);
    else
        sum[threadIdx.x] += value;
}
