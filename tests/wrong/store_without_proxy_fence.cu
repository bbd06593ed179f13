// Wrong: a tensor store reads shared memory that ordinary stores wrote, with no fence.proxy.async between.
#include "ptx/bulk.cuh"
#include "ptx/fence.cuh"
#include "ptx/tma.cuh"
#include "schedule.cuh"

extern "C" __global__ void store_without_proxy_fence(const __grid_constant__ TensorMap y_map, const float* x, float*) {
    __shared__ alignas(128) float tile[64];
    tile[threadIdx.x] = x[threadIdx.x] + 1;
    if (schedule::fixed) ptx::fence::proxy_async_shared();
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::tma::store_2d(y_map, tile, 0, 0);
        ptx::bulk::commit_group();
        ptx::bulk::wait_group<0>();
    }
}
