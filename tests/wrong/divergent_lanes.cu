// Wrong: half of the lanes of a warp wait at a barrier that the others never reach.
#include "schedule.cuh"

extern "C" __global__ void divergent_lanes(const int* x, int* y) {
    __shared__ int row[64];
    row[threadIdx.x] = x[threadIdx.x];
    if (schedule::fixed || threadIdx.x % 32 < 16) __syncthreads();
    y[threadIdx.x] = row[threadIdx.x];
}
