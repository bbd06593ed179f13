// gemv_streamed: y[m, n] = x[m, k] @ w[n, k].T for few rows of x: w streams through a ring in shared memory.
//
// Idea: what HBM delivers is what is asked for ahead, and loads into registers ask for no more than the registers hold.
// Here one thread asks for kilobytes in one instruction and for as many as shared memory holds, long before they are
// used; the warps that multiply find them there. All CTAs are resident at once and have as many rows, so that all SMs
// read until the end.
// Adds to gemv_coalesced: bulk copies that complete on mbarriers, a thread that does nothing but copy, one wave of CTAs.
// It is the other way to have enough in flight beside gemv_vectorized's, whose small CTAs start and end sooner.
//
// Warp roles: warp r multiplies row r of each stage, another step of it each turn; one more warp copies.
//
//              step 0    step 1    step 2              step 0    step 1
//   row r0     warp 0    warp 0    warp 0    row r0 + 2  warp 0    warp 0  ...      warps = 2
//   row r0 + 1 warp 1    warp 1    warp 1    row r0 + 3  warp 1    warp 1  ...
//   x          both      both      both                both      both
//   turn         0         1         2                   3         4               each stage in turn, round the ring
//
// Bytes expected from HBM: w once, x once, y once; from L2 x once for every `warps` rows. blockIdx.y is the row of x:
// m > 1 reads w again for each.
#include "lab/kernels/gemv/bulk_ring.cuh"

extern "C" __global__ void __launch_bounds__(schedule::threads)
    gemv_streamed(const Element* __restrict__ x, const Element* __restrict__ w, Element* __restrict__ y, int m, int n,
                  int k) {
    extern __shared__ Ring dynamic[];
    Ring& ring = dynamic[0];
    const int row0 = blockIdx.x * schedule::block_n;
    const int64_t token = blockIdx.y;
    const Part part{x + token * k, w + int64_t(row0) * k, min(schedule::block_n, n - row0), k, k};
    stream_rows(ring, part, y + token * n + row0);
}
