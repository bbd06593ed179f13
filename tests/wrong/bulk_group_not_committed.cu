// Wrong: a tensor store is awaited before its group is committed: nothing is awaited, and the source is overwritten.
#include "ptx/bulk.cuh"
#include "ptx/fence.cuh"
#include "ptx/tma.cuh"
#include "schedule.cuh"

extern "C" __global__ void bulk_group_not_committed(const __grid_constant__ TensorMap y_map, const float* x, float*) {
    __shared__ alignas(128) float tile[64];
    for (int step = 0; step < 2; ++step) {
        tile[threadIdx.x] = x[step * 64 + threadIdx.x] + 1;
        ptx::fence::proxy_async_shared();
        __syncthreads();
        if (threadIdx.x == 0) {
            ptx::tma::store_2d(y_map, tile, 0, step);
            if (schedule::fixed) ptx::bulk::commit_group();
            ptx::bulk::wait_group_read<0>();
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        ptx::bulk::commit_group();
        ptx::bulk::wait_group<0>();
    }
}
