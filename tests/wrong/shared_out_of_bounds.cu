// Wrong: the halo of the last thread lies past the end of the shared array.
#include "schedule.cuh"

extern "C" __global__ void shared_out_of_bounds(const int* x, int* y) {
    __shared__ int row[64];
    row[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    const int next = schedule::fixed ? (threadIdx.x + 1) % 64 : threadIdx.x + 1;
    y[threadIdx.x] = row[next];
}
