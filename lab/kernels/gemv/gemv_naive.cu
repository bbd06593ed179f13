// gemv_naive: y[m, n] = x[m, k] @ w[n, k].T for few rows of x, one thread a row of w.
//
// Idea: the definition, written down. A thread walks its row of w two bytes at a time; the 32 lanes of a warp are k
// elements apart, so each request moves up to 32 sectors for 64 useful bytes, and the sectors are used up only if they
// stay in L1 until the lanes have walked through them.
//
// Warp roles: all alike; blockIdx.y is the row of x.
//
//            k ->
//   lane 0  |*...............     * what one request touches:
//   lane 1  |*...............       a sector in every row
//   lane 2  |*...............
//
// Bytes expected from HBM: w, x and y once, if L1 keeps 32 sectors a warp; from L2 up to 16 times as many.
#include "ptx/convert.cuh"
#include "schedule.cuh"

extern "C" __global__ void __launch_bounds__(schedule::threads)
    gemv_naive(const bf16* __restrict__ x, const bf16* __restrict__ w, bf16* __restrict__ y, int m, int n, int k) {
    const int row = blockIdx.x * schedule::threads + threadIdx.x;
    const int token = blockIdx.y;
    if (row >= n) return;
    x += int64_t(token) * k;
    w += int64_t(row) * k;
    float sum = 0;
    for (int i = 0; i < k; ++i) sum = fmaf(ptx::convert::to_float(x[i]), ptx::convert::to_float(w[i]), sum);
    ptx::convert::from_float(y[int64_t(token) * n + row], sum);
}
