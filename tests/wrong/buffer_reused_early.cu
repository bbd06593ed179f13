// Wrong: the buffer of one step is overwritten by the next while other warps still read it.
#include "schedule.cuh"

extern "C" __global__ void buffer_reused_early(const int* x, int* y) {
    __shared__ int buffer[64];
    int sum = 0;
    for (int step = 0; step < 3; ++step) {
        buffer[threadIdx.x] = x[step * 64 + threadIdx.x];
        __syncthreads();
        sum += buffer[threadIdx.x ^ 32];
        if (schedule::fixed) __syncthreads();
    }
    y[threadIdx.x] = sum;
}
