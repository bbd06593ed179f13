// gemm_naive: y[m, n] = x[m, k] @ w[n, k].T, one thread an output.
//
// Idea: the definition, written down. It leans on L1 for every reuse: each element of x is fetched by every warp of its
// row, each element of w by every row of y.
//
// Warp roles: all alike. The 32 lanes of a warp take 32 neighbouring columns of one row of y, so that at each k
//
//   x[row, k]            one address for all lanes: one sector, a broadcast
//   w[column, k]         32 addresses k elements apart: up to 32 sectors for 64 or 128 useful bytes
//   y[row, column]       32 neighbours: coalesced
//
// Bytes expected: 2 m n k elements requested of L1, of which 32 bytes are moved for each strided one.
#include "ptx/convert.cuh"
#include "schedule.cuh"

static_assert(schedule::threads == schedule::block_m * schedule::block_n, "one thread an output");
static_assert(schedule::block_n % 32 == 0, "a warp lies in one row");

extern "C" __global__ void __launch_bounds__(schedule::threads)
    gemm_naive(const problem::activations* __restrict__ x, const problem::weights* __restrict__ w,
               problem::output* __restrict__ y, int m, int n, int k) {
    const int row = blockIdx.y * schedule::block_m + threadIdx.y;
    const int column = blockIdx.x * schedule::block_n + threadIdx.x;
    if (row >= m || column >= n) return;
    x += int64_t(row) * k;
    w += int64_t(column) * k;
    float sum = 0;
    for (int i = 0; i < k; ++i) sum = fmaf(ptx::convert::to_float(x[i]), ptx::convert::to_float(w[i]), sum);
    ptx::convert::from_float(y[int64_t(row) * n + column], sum);
}
