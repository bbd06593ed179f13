// Wrong: the destination of a tensor load is aligned to 64 bytes; it needs 128.
#include "ptx/fence.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule.cuh"

extern "C" __global__ void tensor_load_misaligned(const __grid_constant__ TensorMap x_map, const float*, float* y) {
    __shared__ alignas(128) float space[96];
    __shared__ uint64_t full;
    float* tile = space + (schedule::fixed ? 0 : 16);
    if (threadIdx.x == 0) {
        ptx::mbarrier::init(full, 1);
        ptx::fence::mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::mbarrier::arrive_expect_tx(full, 64 * sizeof(float));
        ptx::tma::load_2d(tile, x_map, 0, 0, full);
    }
    ptx::mbarrier::wait(full, 0);
    y[threadIdx.x] = tile[threadIdx.x];
}
