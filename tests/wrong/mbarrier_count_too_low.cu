// Wrong: three warps arrive, the barrier expects two: its phase completes before the last of them has written.
#include "ptx/mbarrier.cuh"
#include "schedule.cuh"

extern "C" __global__ void mbarrier_count_too_low(const int* x, int* y) {
    __shared__ int row[96];
    __shared__ uint64_t written;
    const int reader = threadIdx.x - 96;
    if (threadIdx.x == 0) ptx::mbarrier::init(written, schedule::fixed ? 3 : 2);
    __syncthreads();
    if (reader < 0) {
        row[threadIdx.x] = x[threadIdx.x];
        __syncwarp();
        if (threadIdx.x % 32 == 0) ptx::mbarrier::arrive(written);
    } else {
        ptx::mbarrier::wait(written, 0);
        y[reader] = row[reader] + row[32 + reader] + row[64 + reader];
    }
}
