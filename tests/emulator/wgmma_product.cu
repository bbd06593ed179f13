// y = a[64, K] b[n, K]^T of a row of 128 bytes along K, by one warpgroup: each thread writes its accumulators in order.
#include "ptx/fence.cuh"
#include "ptx/wgmma.cuh"
#include "schedule.cuh"

constexpr int ROW = 128, CHUNK = 16;  // bytes
constexpr int MMA_BYTES = 32;         // along K of a wgmma

// Rows of 128 bytes into shared memory with the 128-byte swizzle.
__device__ __forceinline__ void copy(uint8_t* to, const uint8_t* from, int rows) {
    for (int i = threadIdx.x; i < rows * ROW / CHUNK; i += 128) {
        const int row = i / 8, chunk = (i % 8) ^ (row % 8);
        reinterpret_cast<Vector16*>(to)[row * 8 + chunk] = reinterpret_cast<const Vector16*>(from)[i];
    }
}

extern "C" __global__ void __launch_bounds__(128) wgmma_product(const uint8_t* a, const uint8_t* b, float* y) {
    __shared__ alignas(1024) uint8_t a_tile[64 * ROW];
    __shared__ alignas(1024) uint8_t b_tile[schedule::n * ROW];
    copy(a_tile, a, 64);
    copy(b_tile, b, schedule::n);
    ptx::fence::proxy_async_shared();
    __syncthreads();

    float sum[schedule::n / 2] = {};
    const uint64_t left = ptx::wgmma::descriptor_k_major_128b(a_tile);
    const uint64_t right = ptx::wgmma::descriptor_k_major_128b(b_tile);
    ptx::wgmma::fence();
#pragma unroll
    for (int at = 0; at < ROW; at += MMA_BYTES)
        ptx::wgmma::mma<schedule::element>(sum, ptx::wgmma::advance(left, at), ptx::wgmma::advance(right, at), at > 0);
    ptx::wgmma::commit_group();
    ptx::wgmma::wait_group<0>();
    ptx::wgmma::hold(sum);
    for (int i = 0; i < schedule::n / 2; ++i) y[threadIdx.x * (schedule::n / 2) + i] = sum[i];
}
