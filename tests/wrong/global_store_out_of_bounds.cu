// Wrong: the last CTA writes past the end of y.
#include "schedule.cuh"

extern "C" __global__ void global_store_out_of_bounds(const int* x, int* y, int n) {
    const int i = blockIdx.x * 32 + threadIdx.x;
    const int value = i < n ? x[i] : 0;
    if (!schedule::fixed || i < n) y[i] = value;
}
