// Wrong: lanes take part in a shuffle whose mask names lanes that are elsewhere, and read from them.
#include "schedule.cuh"

extern "C" __global__ void shuffle_from_absent_lane(const int* x, int* y) {
    int value = x[threadIdx.x];
    if (schedule::fixed || threadIdx.x < 16) value += __shfl_xor_sync(0xffffffffu, value, 16);
    y[threadIdx.x] = value;
}
