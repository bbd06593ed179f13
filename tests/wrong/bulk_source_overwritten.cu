// Wrong: the source of a tensor store is overwritten before the store has read it.
#include "ptx/bulk.cuh"
#include "ptx/fence.cuh"
#include "ptx/tma.cuh"
#include "schedule.cuh"

extern "C" __global__ void bulk_source_overwritten(const __grid_constant__ TensorMap y_map, const float* x, float*) {
    __shared__ alignas(128) float tile[64];
    for (int step = 0; step < 2; ++step) {
        tile[threadIdx.x] = x[step * 64 + threadIdx.x] + 1;
        ptx::fence::proxy_async_shared();
        __syncthreads();
        if (threadIdx.x == 0) {
            ptx::tma::store_2d(y_map, tile, 0, step);
            ptx::bulk::commit_group();
            if (schedule::fixed) ptx::bulk::wait_group_read<0>();
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) ptx::bulk::wait_group<0>();
}
