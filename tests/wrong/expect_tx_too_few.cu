// Wrong: the barrier is told to expect fewer bytes than the load brings.
#include "ptx/fence.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule.cuh"

extern "C" __global__ void expect_tx_too_few(const __grid_constant__ TensorMap x_map, const float*, float* y) {
    __shared__ alignas(128) float tile[64];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) {
        ptx::mbarrier::init(full, 1);
        ptx::fence::mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::mbarrier::arrive_expect_tx(full, sizeof(tile) - (schedule::fixed ? 0 : 16));
        ptx::tma::load_2d(tile, x_map, 0, 0, full);
    }
    ptx::mbarrier::wait(full, 0);
    y[threadIdx.x] = tile[threadIdx.x];
}
