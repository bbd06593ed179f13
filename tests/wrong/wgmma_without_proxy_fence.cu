// Wrong: wgmma reads shared memory that ordinary stores wrote, with no fence.proxy.async between.
#include "ptx/fence.cuh"
#include "ptx/wgmma.cuh"
#include "schedule.cuh"

extern "C" __global__ void wgmma_without_proxy_fence(const uint32_t* x, float* y) {
    __shared__ alignas(1024) uint32_t tile[64 * 32];  // 64 rows of 128 bytes
    for (int i = threadIdx.x; i < 64 * 32; i += 128) tile[i] = x[i];
    if (schedule::fixed) ptx::fence::proxy_async_shared();
    __syncthreads();
    float sum[32] = {};
    ptx::wgmma::hold(sum);
    const uint64_t rows = ptx::wgmma::descriptor_k_major_128b(tile);
    ptx::wgmma::fence();
    ptx::wgmma::mma<bf16>(sum, rows, rows, true);
    ptx::wgmma::commit_group();
    ptx::wgmma::wait_group<0>();
    ptx::wgmma::hold(sum);
    for (int i = 0; i < 32; ++i) y[threadIdx.x * 32 + i] = sum[i];
}
