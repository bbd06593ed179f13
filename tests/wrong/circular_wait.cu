// Wrong: each of two warps waits for the other before it arrives itself.
#include "ptx/fence.cuh"
#include "ptx/mbarrier.cuh"
#include "schedule.cuh"

extern "C" __global__ void circular_wait(const int* x, int* y) {
    __shared__ uint64_t ready[2];
    if (threadIdx.x == 0) {
        ptx::mbarrier::init(ready[0], 32);
        ptx::mbarrier::init(ready[1], 32);
        ptx::fence::mbarrier_init();
    }
    __syncthreads();
    const int warp = threadIdx.x / 32;
    if (schedule::fixed) ptx::mbarrier::arrive(ready[warp]);
    ptx::mbarrier::wait(ready[1 - warp], 0);
    if (!schedule::fixed) ptx::mbarrier::arrive(ready[warp]);
    y[threadIdx.x] = x[threadIdx.x];
}
