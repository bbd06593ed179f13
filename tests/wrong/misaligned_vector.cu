// Wrong: 16-byte loads of rows whose pitch is no multiple of 16 bytes.
#include "schedule.cuh"

extern "C" __global__ void misaligned_vector(const int* x, int* y) {
    const int* row = x + threadIdx.x * (schedule::fixed ? 8 : 6);
    const int4 v = *reinterpret_cast<const int4*>(row);
    y[threadIdx.x] = v.x + v.y + v.z + v.w;
}
