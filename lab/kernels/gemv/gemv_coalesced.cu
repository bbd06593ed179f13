// gemv_coalesced: y[m, n] = x[m, k] @ w[n, k].T for few rows of x, one warp a row of w.
//
// Idea: neighbouring lanes touch neighbouring addresses. Rows are contiguous along k, so that is where the lanes of a
// warp lie: each sums every 32nd product of the dot product, and at the end the lanes add up what they have.
// Adds to gemv_naive: coalescing. A request is 64 contiguous bytes, all of them used at once.
//
// Warp roles: all alike; blockIdx.y is the row of x.
//
//             k ->
//   warp 0  |0 1 2 ... 31|0 1 2 ... 31|    the digits are lanes:
//   warp 1  |0 1 2 ... 31|0 1 2 ... 31|    two sectors a request
//
// Bytes expected from HBM and from L2: w, x and y once; every warp reads x again, from L1.
#include "lab/kernels/common/warp_sum.cuh"
#include "ptx/convert.cuh"
#include "schedule.cuh"

using Element = problem::weights;  // of w, of x and of y

constexpr int LANES = 32;

static_assert(schedule::threads == LANES * schedule::warps, "a warp a row");

extern "C" __global__ void __launch_bounds__(schedule::threads)
    gemv_coalesced(const Element* __restrict__ x, const Element* __restrict__ w, Element* __restrict__ y, int m, int n,
                   int k) {
    const int lane = threadIdx.x % LANES;
    const int row = blockIdx.x * schedule::warps + threadIdx.x / LANES;
    const int64_t token = blockIdx.y;
    if (row >= n) return;
    x += token * k;
    w += int64_t(row) * k;
    float sum = 0;
#pragma unroll 1  // other warps hide the latency
    for (int k0 = 0; k0 < k; k0 += LANES)  // as many steps for every lane, so that the warp stays together
        if (k0 + lane < k)
            sum = fmaf(ptx::convert::to_float(x[k0 + lane]), ptx::convert::to_float(w[k0 + lane]), sum);
    sum = warp_sum(sum);
    if (lane == 0) ptx::convert::from_float(y[token * n + row], sum);
}
