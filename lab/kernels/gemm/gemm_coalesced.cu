// gemm_coalesced: y[m, n] = x[m, k] @ w[n, k].T, a warp for 32 outputs, its lanes side by side along k.
//
// Idea: neighbouring lanes touch neighbouring addresses. Rows of x and w are contiguous along k, so that is where the
// lanes of a warp lie. Each lane sums its own k for all 32 outputs, and at the end the lanes exchange what they have.
// Adds to gemm_naive: coalescing; a request moves 128 useful bytes, and x is fetched once for 32 columns.
//
// Warp roles: all alike. A warp owns 32 neighbouring columns of one row of y; the warps of a CTA take rows one below
// the other, so that they share their 32 rows of w in L1.
//
//                       k0 ... k0 + 31
//   x[row]              one request, kept in a register
//   w[column]           one request \
//   ...                              > 32 sums a lane
//   w[column + 31]      one request /
//
// Bytes expected: w once for each row of y, x once for each 32 columns; L1 serves most of it.
#include "lab/kernels/gemm/_simt.cuh"

static_assert(schedule::block_n == LANES, "a warp owns as many columns as it has lanes");

// Lane l gets the sum of sums[l] over all lanes. Each step halves what a lane is responsible for: it keeps one half and
// gives the other to its partner, 31 shuffles in all.
__device__ __forceinline__ float transposed_sum(float (&sums)[LANES], int lane) {
#pragma unroll
    for (int half = LANES / 2; half > 0; half /= 2) {
        const bool upper = lane & half;
#pragma unroll
        for (int i = 0; i < half; ++i) {
            const float keep = upper ? sums[i + half] : sums[i];
            const float give = upper ? sums[i] : sums[i + half];
            sums[i] = keep + __shfl_xor_sync(0xffffffffu, give, half);
        }
    }
    return sums[0];
}

constexpr int WARPS = 32;  // that an SM should hold: more registers a thread would gain nothing

extern "C" __global__ void __launch_bounds__(schedule::threads, WARPS * LANES / schedule::threads)
    gemm_coalesced(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, int m, int n,
                   int k) {
    const Tile tile = tile_of_cta(n);
    const int lane = threadIdx.x % LANES;
    const int row = tile.row + threadIdx.x / LANES;
    if (row >= m) return;
    x += int64_t(row) * k;
    w += int64_t(tile.column) * k;

    const int columns = n - tile.column;  // up to the end of the row
    float sums[LANES] = {};
    for (int at = lane; at < k; at += LANES) {
        const float a = x[at];
        const float* from = w + at;
#pragma unroll
        for (int i = 0; i < LANES; ++i) {
            const float b = i < columns ? *from : 0.0f;
            sums[i] = fmaf(a, b, sums[i]);
            from += k;
        }
    }
    const float sum = transposed_sum(sums, lane);
    if (lane < columns) y[int64_t(row) * n + tile.column + lane] = sum;
}
