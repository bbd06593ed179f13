// gemm_mma_sync: y[m, n] = x[m, k] @ w[n, k].T on the tensor cores, fed by cp.async: prefill as Ampere does it.
//
// Idea: a ring of `stages` tiles in shared memory. cp.async fills the stages ahead while the warps multiply: ldmatrix
// brings 16x16 fragments of both operands to registers, mma.sync multiplies them, and the fragments of the next 16
// along k are on their way meanwhile.
// Adds to gemm_naive: tiles reused from shared memory and registers, copies that do not wait, tensor cores.
//
// Warp roles: all alike. Each copies its share of every stage and owns warp_m x warp_n of the CTA's tile.
//
//   cp.async    | stage 0 | stage 1 | stage 2 |  | stage 3     | stage 0     | ...       stages = 4
//   ldmatrix                                  | 0| 1| 2| 3|  0 | 1| 2| 3|  0 | ...       16 along k at a time
//   mma.sync                                     | 0| 1| 2|  3 | 0| 1| 2|  3 | ...
//   barrier                                   ^           ^             ^                a stage is full, one is free
//
// Rows of a tile are 64 or 128 bytes in 16-byte chunks, permuted so that eight rows of one chunk lie in all 32 banks:
// neither cp.async, ldmatrix nor the epilogue meets a bank conflict.
//
// Bytes expected past L1: x once for every column of tiles, w once for every row of tiles. From HBM: x, w and y once,
// while the tiles in flight share their operands in L2.
#include "lab/kernels/common/raster.cuh"
#include "ptx/convert.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

using Element = problem::weights;  // of x and of w

constexpr int WARP = 32;
constexpr int MMA_M = 16, MMA_N = 8, MMA_K = 16;
constexpr int M_TILES = schedule::warp_m / MMA_M, N_TILES = schedule::warp_n / MMA_N;  // of an mma, in each warp
constexpr int PARTS = schedule::block_k / MMA_K;         // of a k-step
constexpr int CHUNK = 8, BYTES = 16;                     // elements of a chunk, its bytes
constexpr int CHUNKS = schedule::block_k / CHUNK;        // in a row of a stage
constexpr int FILL_ROWS = schedule::threads / CHUNKS;    // that all threads copy at once
constexpr int Y_CHUNKS = schedule::warp_n / CHUNK;       // in a row of a warp's part of y
constexpr int Y_ROWS = WARP / Y_CHUNKS;                  // that a warp stores at once
constexpr int WARPS = schedule::warps_m * schedule::warps_n;

struct Stage {
    Element x[schedule::block_m][schedule::block_k];
    Element w[schedule::block_n][schedule::block_k];
};

union Shared {
    Stage ring[schedule::stages];
    problem::output y[WARPS][schedule::warp_m][schedule::warp_n];  // after the last k-step
};

static_assert(sizeof(Stage) == schedule::stage_bytes && sizeof(Shared) == schedule::shared_bytes, "what is asked for");
static_assert(schedule::block_m % FILL_ROWS == 0 && schedule::block_n % FILL_ROWS == 0, "every thread copies as much");
static_assert(PARTS % 2 == 0, "a k-step begins with the first fragments");

// The chunk of a tile, numbered row by row, where chunk `chunk` of row `row` lies.
template <int chunks>
__device__ __forceinline__ int place(int row, int chunk) {
    return row * chunks + (chunk ^ row / (8 / chunks) % chunks);
}

// What this thread copies of one operand's `rows` rows in each k-step: one chunk of every FILL_ROWS-th row.
template <int rows>
struct Source {
    const Element* from;  // in this k-step
    int64_t stride;       // elements from there to its next chunk
    int rows_left, k_left;
    uint32_t to;  // bytes from the beginning of a tile

    __device__ __forceinline__ Source(const Element* operand, int extent, int k, int first) {
        const int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        from = operand + int64_t(first + row) * k + chunk * CHUNK;
        stride = int64_t(FILL_ROWS) * k;
        rows_left = extent - first - row;
        k_left = k - chunk * CHUNK;
        to = place<CHUNKS>(row, chunk) * BYTES;
    }

    // Part `part` of a k-step; what lies outside the operand becomes zero.
    __device__ __forceinline__ void fill(const Element (&tile)[rows][schedule::block_k], int part) const {
#pragma unroll
        for (int i = part; i < rows / FILL_ROWS; i += PARTS) {
            const bool inside = i * FILL_ROWS < rows_left && k_left > 0;
            ptx::cp_async::copy_16(ptx::address::shared(tile) + to + i * FILL_ROWS * CHUNKS * BYTES,
                                   from + stride * i, inside ? BYTES : 0);
        }
    }

    __device__ __forceinline__ void advance() {
        from += schedule::block_k;
        k_left -= schedule::block_k;
    }
};

struct Sources {
    Source<schedule::block_m> x;
    Source<schedule::block_n> w;

    __device__ __forceinline__ void fill(const Stage& stage, int part) const {
        x.fill(stage.x, part);
        w.fill(stage.w, part);
    }

    // The k-step is on its way: close its group and go on to the next.
    __device__ __forceinline__ void advance() {
        ptx::cp_async::commit_group();
        x.advance();
        w.advance();
    }
};

// 16 along k of a warp's rows of x and of w. Of each 16 rows ldmatrix leaves four 8x8 matrices in four registers: of x
// in the order of an mma's a, of w so that registers 0 and 1 are the b of eight rows, 2 and 3 that of the next eight.
struct Fragments {
    uint32_t x[M_TILES][4], w[N_TILES / 2][4];

    __device__ __forceinline__ void load(const Stage& stage, int part) {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
        const int x_row = warp / schedule::warps_n * schedule::warp_m + lane % 16;
        const int w_row = warp % schedule::warps_n * schedule::warp_n + lane / 16 * 8 + lane % 8;
        const int x_place = place<CHUNKS>(x_row, part * 2 + lane / 16);
        const int w_place = place<CHUNKS>(w_row, part * 2 + lane / 8 % 2);
        const uint32_t x_at = ptx::address::shared(stage.x) + x_place * BYTES;
        const uint32_t w_at = ptx::address::shared(stage.w) + w_place * BYTES;
#pragma unroll
        for (int t = 0; t < M_TILES; ++t) ptx::ldmatrix::x4(x[t], x_at + t * 16 * CHUNKS * BYTES);
#pragma unroll
        for (int t = 0; t < N_TILES / 2; ++t) ptx::ldmatrix::x4(w[t], w_at + t * 16 * CHUNKS * BYTES);
    }
};

using Sum = float[M_TILES][N_TILES][4];

// sum += x w^T of one part.
__device__ __forceinline__ void multiply(Sum& sum, const Fragments& fragments) {
#pragma unroll
    for (int t = 0; t < M_TILES; ++t)
#pragma unroll
        for (int j = 0; j < N_TILES; ++j) {
            const uint32_t* w = &fragments.w[j / 2][j % 2 * 2];
            ptx::mma::m16n8k16<Element>(sum[t][j], fragments.x[t], {w[0], w[1]});
        }
}

// The next stage is filled for all warps, and none reads the one before it.
__device__ __forceinline__ void await_stage() {
    ptx::cp_async::wait_group<schedule::stages - 2>();
    __syncthreads();
}

// Every k-step. The ring is filled `stages - 1` steps ahead; those past the last are zeros that are not multiplied.
__device__ __forceinline__ void accumulate(Sum& sum, Shared& shared, Sources& sources, int steps) {
#pragma unroll
    for (int stage = 0; stage < schedule::stages - 1; ++stage) {
#pragma unroll
        for (int part = 0; part < PARTS; ++part) sources.fill(shared.ring[stage], part);
        sources.advance();
    }
    Fragments fragments[2];
    int reading = 0, filling = schedule::stages - 1;
    await_stage();
    fragments[0].load(shared.ring[reading], 0);
    for (int step = 0; step < steps; ++step) {
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            sources.fill(shared.ring[filling], part);
            if (part + 1 == PARTS) {
                sources.advance();
                filling = reading;
                reading = reading + 1 == schedule::stages ? 0 : reading + 1;
                await_stage();
            }
            fragments[(part + 1) % 2].load(shared.ring[reading], (part + 1) % PARTS);
            multiply(sum, fragments[part % 2]);
        }
    }
}

// Round in shared memory, from where each warp stores its own rows in 16-byte vectors, clipped to y.
__device__ __forceinline__ void epilogue(const Sum& sum, Shared& shared, problem::output* y, Tile tile, int m, int n) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    auto* staged = reinterpret_cast<Vector16*>(shared.y[warp]);
    ptx::cp_async::wait_group<0>();
    __syncthreads();  // no warp reads or fills the ring any more, whose place y takes
#pragma unroll
    for (int t = 0; t < M_TILES; ++t)
#pragma unroll
        for (int j = 0; j < N_TILES; ++j) {
            const float(&s)[4] = sum[t][j];
            const int row = t * MMA_M + lane / 4;
            staged[place<Y_CHUNKS>(row, j)].words[lane % 4] = ptx::convert::pair<problem::output>(s[0], s[1]);
            staged[place<Y_CHUNKS>(row + 8, j)].words[lane % 4] = ptx::convert::pair<problem::output>(s[2], s[3]);
        }
    __syncwarp();
    const int first = tile.row + warp / schedule::warps_n * schedule::warp_m, chunk = lane % Y_CHUNKS;
    const int column = tile.column + warp % schedule::warps_n * schedule::warp_n + chunk * CHUNK;
#pragma unroll
    for (int i = lane / Y_CHUNKS; i < schedule::warp_m; i += Y_ROWS)
        if (first + i < m && column < n)
            *reinterpret_cast<Vector16*>(y + int64_t(first + i) * n + column) = staged[place<Y_CHUNKS>(i, chunk)];
}

extern "C" __global__ void __launch_bounds__(schedule::threads, schedule::ctas_per_sm)
    gemm_mma_sync(const Element* __restrict__ x, const Element* __restrict__ w, problem::output* __restrict__ y, int m,
                  int n, int k) {
    extern __shared__ __align__(128) uint8_t dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    const Tile tile = tile_at(blockIdx.x, tiles_of(m, schedule::block_m), tiles_of(n, schedule::block_n),
                              schedule::block_m, schedule::block_n);
    Sources sources{{x, m, k, tile.row}, {w, n, k, tile.column}};

    Sum sum = {};
    accumulate(sum, shared, sources, tiles_of(k, schedule::block_k));
    epilogue(sum, shared, y, tile, m, n);
}
