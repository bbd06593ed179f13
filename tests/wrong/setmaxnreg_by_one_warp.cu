// Wrong: one warp changes its registers; every warp of a warpgroup must.
#include "ptx/setmaxnreg.cuh"
#include "schedule.cuh"

extern "C" __global__ void __launch_bounds__(128) setmaxnreg_by_one_warp(const int* x, int* y) {
    if (schedule::fixed || threadIdx.x < 32) ptx::setmaxnreg::dec<40>();
    y[threadIdx.x] = x[threadIdx.x];
}
