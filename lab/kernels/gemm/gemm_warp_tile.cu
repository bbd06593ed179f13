// gemm_warp_tile: y[m, n] = x[m, k] @ w[n, k].T, warps own compact tiles, and loads run while all multiply.
//
// Idea: the multiply-adds should be all that an SM issues. The lanes of a warp lie 4 x 8, so that a warp reads few rows
// of x and w for many outputs; k-steps come into a ring of stages by cp.async, past registers, several steps ahead.
// Adds to gemm_vectorized: warp tiles, a ring filled asynchronously (one barrier a k-step, no wait for memory), a raster
// that shares x and w in L2, patches up to 8 x 16.
//
// Warp roles: all alike. At a step each thread waits for its own copies, meets the others, starts the copies of the step
// stages - 1 ahead into the stage that all have just left, and multiplies.
//
//   copies     | 0 | 1 | 2 | 3 | 4 | ...
//   multiply           | 0 | 1 | 2 | ...      stages = 3
//
//   warp tile, 8 x 8 a thread: 32 x 64            lanes of x: 0 0 1 1 0 0 1 1 ...
//   rows of a thread 4 apart, columns 8 apart     lanes of w: 0 1 0 1 2 3 2 3 ...
//
// Bytes expected: 4 (m n k / block_n + m n k / block_m) through L2, and none of it through L1.
#include "lab/kernels/gemm/_patch.cuh"
#include "ptx/cp_async.cuh"

constexpr int ROW_VECTORS = schedule::block_k / VECTOR;  // lanes that share a row
constexpr int TOGETHER = schedule::threads / ROW_VECTORS;  // rows that all threads copy at once
constexpr int WARP_M = schedule::spread_m * schedule::thread_m, WARP_N = schedule::spread_n * schedule::thread_n;
constexpr int WARPS_N = schedule::block_n / WARP_N;  // warp tiles side by side

static_assert(schedule::spread_m * schedule::spread_n == LANES, "the lanes of a warp share its tile");
static_assert(schedule::pitch % VECTOR == 0, "every row of a tile is aligned for vectors");

struct Stage {
    alignas(16) float x[schedule::block_m][schedule::pitch];
    alignas(16) float w[schedule::block_n][schedule::pitch];
};

struct Shared {
    Stage stage[schedule::stages];
};

static_assert(sizeof(Shared) == schedule::shared_bytes, "what the launch asks for");

// What this thread copies of an operand at each k-step: 16 bytes of every TOGETHER-th row of the tile.
struct Source {
    const float* from;  // the first of them, at the next k-step
    int rows;           // rows that the matrix has from there on
};

__device__ __forceinline__ Source source_of(const float* matrix, int row, int rows, int k) {
    const int first = row + threadIdx.x / ROW_VECTORS;
    return {matrix + int64_t(first) * k + threadIdx.x % ROW_VECTORS * VECTOR, rows - first};
}

// As load_vectors of gemm_vectorized, but on its way when this returns. `inside`: this thread's vector lies in the rows.
template <int height>
__device__ __forceinline__ void copy_vectors(float (&tile)[height][schedule::pitch], Source& source, int k,
                                             bool inside) {
    float* to = &tile[threadIdx.x / ROW_VECTORS][threadIdx.x % ROW_VECTORS * VECTOR];
#pragma unroll
    for (int r = 0; r < height; r += TOGETHER)
        ptx::cp_async::copy_16(ptx::address::shared(to + r * schedule::pitch), source.from + int64_t(r) * k,
                               inside && r < source.rows ? 16 : 0);
    source.from += schedule::block_k;
}

// One k-step of the warp tile whose first elements for this lane are at `row` and `column` of the CTA's tile.
__device__ __forceinline__ void multiply(Patch& sums, const Stage& stage, int row, int column) {
#pragma unroll schedule::unroll
    for (int at = 0; at < schedule::block_k; at += VECTOR)
        multiply_vectors(sums, &stage.x[row][at], &stage.w[column][at]);
}

extern "C" __global__ void __launch_bounds__(schedule::threads, schedule::ctas_per_sm)
    gemm_warp_tile(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, int m, int n,
                   int k) {
    extern __shared__ __align__(16) uint8_t dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    const Tile tile = tile_at(blockIdx.x, tiles_of(m, schedule::block_m), tiles_of(n, schedule::block_n),
                              schedule::block_m, schedule::block_n);
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    // Bits 1 and 4 of the lane go down, the others across: lanes l and l ^ 1 read the same row of x, l and l ^ 2 the
    // same of w, which lets shared memory serve half a warp's 16-byte vectors at once.
    const int row = warp / WARPS_N * WARP_M + lane / 2 % 2 + lane / 16 * 2;
    const int column = warp % WARPS_N * WARP_N + lane % 2 + lane / 4 % 4 * 2;

    Source x_source = source_of(x, tile.row, m, k), w_source = source_of(w, tile.column, n, k);
    int left = k - threadIdx.x % ROW_VECTORS * VECTOR;  // elements of a row from this thread's next vector on
    const auto fetch = [&](Stage& stage) {
        copy_vectors(stage.x, x_source, k, left > 0);
        copy_vectors(stage.w, w_source, k, left > 0);
        ptx::cp_async::commit_group();
        left -= schedule::block_k;
    };
    for (int s = 0; s < schedule::stages - 1; ++s) fetch(shared.stage[s]);

    Patch sums = {};
    int full = 0, empty = schedule::stages - 1;  // the stage that is multiplied, the stage that all have left
    for (int k0 = 0; k0 < k; k0 += schedule::block_k) {
        ptx::cp_async::wait_group<schedule::stages - 2>();
        __syncthreads();
        fetch(shared.stage[empty]);
        multiply(sums, shared.stage[full], row, column);
        empty = full;
        full = full + 1 == schedule::stages ? 0 : full + 1;
    }
    ptx::cp_async::wait_group<0>();  // the last steps fetched zeros from beyond k: a CTA may not end before they are there
    store_patch(y, sums, tile.row + row, tile.column + column, m, n);
}
