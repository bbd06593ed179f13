// gemv_vectorized: y[m, n] = x[m, k] @ w[n, k].T for few rows of x: decode.
//
// Idea: weights are read once, so nothing is staged. Every lane streams 16 bytes at a time, a warp 512 contiguous bytes,
// and several such loads are in flight before the first is used. Weights leave no line in L1; x, which every warp reads
// again, stays there.
// Adds to gemv_coalesced: wide loads, several in flight, weights past L1, a row shared by warps.
//
// Warp roles: all alike. A team of `split_k` warps shares `rows` rows of w; warp s of it takes the k-steps
// s, s + split_k, ... of 256 elements; partial sums meet in shared memory.
//
//        k-step:    0        1        2        3
//   row r     | warp 0 | warp 1 | warp 0 | warp 1 |     split_k = 2
//   row r + 1 | warp 0 | warp 1 | warp 0 | warp 1 |     rows = 2
//
// Bytes expected from HBM: w once, x once, y once. blockIdx.y is the row of x: m > 1 reads w again for each.
#include "lab/kernels/gemv/_dot.cuh"
#include "ptx/load.cuh"

constexpr int STEP = LANES * VECTOR;              // elements of a row that a warp takes at once
constexpr int STRIDE = STEP * schedule::split_k;  // from one k-step of a warp to its next

static_assert(schedule::threads == LANES * schedule::teams * schedule::split_k, "teams of split_k warps");

struct Shared {
    float partial[schedule::teams][schedule::split_k][schedule::rows];
};

// `unroll` k-steps of `rows` rows from element k0 on: all loads are issued before the first multiply. Where the whole
// step lies inside the matrix the loads need no predicate.
template <bool whole>
__device__ __forceinline__ void step(float (&sum)[schedule::rows], const Element* x, const Element* w, int rows_left,
                                     int k, int k0) {
    Vector16 w_part[schedule::unroll][schedule::rows], x_part[schedule::unroll];
#pragma unroll
    for (int u = 0; u < schedule::unroll; ++u) {
        const int at = k0 + u * STRIDE;
#pragma unroll
        for (int r = 0; r < schedule::rows; ++r) {
            const Element* from = w + int64_t(r) * k + at;
            w_part[u][r] = whole ? ptx::load::no_allocate(from)
                                 : ptx::load::no_allocate_if(from, at < k && r < rows_left);
        }
        x_part[u] = whole ? ptx::load::cached(x + at) : ptx::load::cached_if(x + at, at < k);
    }
    __syncwarp();  // ptxas would sink each load to its first use; it moves none across a warp barrier
#pragma unroll
    for (int u = 0; u < schedule::unroll; ++u)
#pragma unroll
        for (int r = 0; r < schedule::rows; ++r) multiply_add(sum[r], w_part[u][r], x_part[u]);
}

// This warp's share of `rows` dot products.
__device__ __forceinline__ void stream(float (&sum)[schedule::rows], const Element* x, const Element* w, int rows_left,
                                       int k, int warp, int lane) {
    int k0 = warp * STEP;
    if (rows_left >= schedule::rows)
        for (; k0 + (schedule::unroll - 1) * STRIDE + STEP <= k; k0 += schedule::unroll * STRIDE)
            step<true>(sum, x, w, rows_left, k, k0 + lane * VECTOR);
    for (; k0 < k; k0 += schedule::unroll * STRIDE) step<false>(sum, x, w, rows_left, k, k0 + lane * VECTOR);
}

extern "C" __global__ void __launch_bounds__(schedule::threads)
    gemv_vectorized(const Element* __restrict__ x, const Element* __restrict__ w, Element* __restrict__ y, int m, int n,
                    int k) {
    __shared__ Shared shared;
    const int lane = threadIdx.x % LANES;
    const int warp = threadIdx.x / LANES % schedule::split_k;
    const int team = threadIdx.x / LANES / schedule::split_k;
    const int row0 = (blockIdx.x * schedule::teams + team) * schedule::rows;
    const int64_t token = blockIdx.y;

    float sum[schedule::rows] = {};
    if (row0 < n) stream(sum, x + token * k, w + int64_t(row0) * k, n - row0, k, warp, lane);

    float mine = 0;  // lane r keeps row r, so that one request stores all rows
#pragma unroll
    for (int r = 0; r < schedule::rows; ++r) {
        const float total = warp_sum(sum[r]);
        if (lane == r) mine = total;
    }
    if (schedule::split_k > 1) {
        if (lane < schedule::rows) shared.partial[team][warp][lane] = mine;
        __syncthreads();
        if (lane < schedule::rows) {
            mine = 0;
#pragma unroll
            for (int s = 0; s < schedule::split_k; ++s) mine += shared.partial[team][s][lane];
        }
    }
    if (warp == 0 && lane < schedule::rows && row0 + lane < n)
        ptx::convert::from_float(y[token * n + row0 + lane], mine);
}
