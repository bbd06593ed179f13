// Wrong: the output is added to, though nobody has written it before; the fixed twin sets it.
#include "schedule.cuh"

extern "C" __global__ void unwritten_global(const int* x, int* y) {
    const int before = schedule::fixed ? 0 : y[threadIdx.x];
    y[threadIdx.x] = before + x[threadIdx.x];
}
