// gemm_coalesced: y[m, n] = x[m, k] @ w[n, k].T, a warp an output, its lanes side by side along k.
//
// Idea: neighbouring lanes touch neighbouring addresses. Rows of x and w are contiguous along k, so that is where the
// lanes of a warp lie: each sums its own part of the dot product, and at the end the lanes add up what they have.
// Adds to gemm_naive: coalescing. It still leans on L1 for every reuse.
//
// Warp roles: all alike. The warps of a CTA own a patch of y of block_m x block_n, so that they share rows in L1.
//
//             k0 ... k0 + 31 | k0 + 32 ... k0 + 63 | ...
//   x[row]      one request  |     one request     |
//   w[column]   one request  |     one request     |      of 128 useful bytes each
//
// Bytes expected: 2 m n k elements requested of L1, and no more than that is moved.
#include "lab/kernels/common/warp_sum.cuh"
#include "lab/kernels/gemm/simt_tile.cuh"

static_assert(schedule::threads == LANES * schedule::block_m * schedule::block_n, "a warp an output");

extern "C" __global__ void __launch_bounds__(schedule::threads)
    gemm_coalesced(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, int m, int n,
                   int k) {
    const Tile tile = own_tile(m, n);
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const int row = tile.row + warp / schedule::block_n, column = tile.column + warp % schedule::block_n;
    if (row >= m || column >= n) return;
    x += int64_t(row) * k;
    w += int64_t(column) * k;
    float sum = 0;
#pragma unroll 1  // other warps hide the latency
    for (int k0 = 0; k0 < k; k0 += LANES)  // as many steps for every lane, so that the warp stays together
        if (k0 + lane < k) sum = fmaf(x[k0 + lane], w[k0 + lane], sum);
    sum = warp_sum(sum);
    if (lane == 0) y[int64_t(row) * n + column] = sum;
}
