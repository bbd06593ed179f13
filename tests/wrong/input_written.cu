// Wrong: the kernel clamps its input in place, which the launch says it only reads.
#include "schedule.cuh"

extern "C" __global__ void input_written(int* x, int* y) {
    const int value = max(x[threadIdx.x], 50);
    if (!schedule::fixed) x[threadIdx.x] = value;
    y[threadIdx.x] = value;
}
