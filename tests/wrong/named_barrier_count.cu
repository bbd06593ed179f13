// Wrong: two warps meet at a named barrier and disagree on how many threads take part.
#include "ptx/barrier.cuh"
#include "schedule.cuh"

extern "C" __global__ void named_barrier_count(const int* x, int* y) {
    __shared__ int row[64];
    row[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x < 32)
        ptx::barrier::sync<64>(1);
    else
        ptx::barrier::sync<schedule::fixed ? 64 : 96>(1);
    y[threadIdx.x] = row[63 - threadIdx.x];
}
