// Wrong: the wait asks for the phase before the first, which counts as complete, and so returns at once.
#include "ptx/fence.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule.cuh"

extern "C" __global__ void mbarrier_wrong_parity(const __grid_constant__ TensorMap x_map, const float*, float* y) {
    __shared__ alignas(128) float tile[64];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) {
        ptx::mbarrier::init(full, 1);
        ptx::fence::mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::mbarrier::arrive_expect_tx(full, sizeof(tile));
        ptx::tma::load_2d(tile, x_map, 0, 0, full);
    }
    ptx::mbarrier::wait(full, schedule::fixed ? 0 : 1);
    y[threadIdx.x] = tile[threadIdx.x];
}
