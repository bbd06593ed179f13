// Wrong: a register that only half of the lanes set is an index.
#include "schedule.cuh"

extern "C" __global__ void uninitialised_address(const int* x, int* y) {
    int value;
    asm volatile(  // a C++ variable without a value would be optimised away
        "{\n\t.reg .s32 r;\n\t.reg .pred p;\n\tsetp.lt.s32 p, %1, %2;\n\t@p mov.s32 r, 3;\n\tmov.s32 %0, r;\n\t}"
        : "=r"(value)
        : "r"(threadIdx.x), "r"(schedule::fixed ? 32 : 16));
    y[threadIdx.x] = x[(threadIdx.x + value) % 32];
}
