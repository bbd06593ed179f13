// Wrong: the CTA ends, and its shared memory with it, while a tensor store may still read from there.
#include "ptx/bulk.cuh"
#include "ptx/fence.cuh"
#include "ptx/tma.cuh"
#include "schedule.cuh"

extern "C" __global__ void exit_before_store_has_read(const __grid_constant__ TensorMap y_map, const float* x, float*) {
    __shared__ alignas(128) float tile[64];
    tile[threadIdx.x] = x[threadIdx.x] + 1;
    ptx::fence::proxy_async_shared();
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::tma::store_2d(y_map, tile, 0, 0);
        ptx::bulk::commit_group();
        if (schedule::fixed) ptx::bulk::wait_group_read<0>();
    }
}
