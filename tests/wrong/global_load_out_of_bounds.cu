// Wrong: the right neighbour of the last element lies past the end of x.
#include "schedule.cuh"

extern "C" __global__ void global_load_out_of_bounds(const int* x, int* y, int n) {
    const int i = blockIdx.x * 32 + threadIdx.x;
    if (i >= n) return;
    const int right = schedule::fixed ? min(i + 1, n - 1) : i + 1;
    y[i] = x[i] + x[right];
}
