// gemm_warp_tile: y[m, n] = x[m, k] @ w[n, k].T, warps own compact tiles, and loads run while all multiply.
//
// Idea: the multiply-adds should be all that an SM waits for. Each of the two banks of registers gives one operand a
// clock, so multiply-adds run at full rate if each shares an operand with the one before and the other reads fall
// evenly on the banks. A vector along k, as gemm_vectorized reads it, puts x and w of one k in the same bank and half
// of all sums with them: three reads of a bank for two multiply-adds. A vector down the rows, at one k, does not.
// Adds to gemm_vectorized: tiles transposed on their way into shared memory, 4 bytes a lane, by cp.async into a ring of
// stages; fragments read one k ahead; compact warp tiles; a raster that shares x and w in L2; patches up to 16 x 8.
//
// Warp roles: all alike. During a k-step each thread multiplies stage `full`, one k after another, and strews between
// them the copies of the step stages - 1 ahead, into the stage that all left at the last barrier.
//
//   copies     | 0 | 1 | 2 | 3 | 4 | ...
//   multiply           | 0 | 1 | 2 | ...        stages = 3
//
//   a request for copies: 4 rows x 8 k          k 0: rows 0 1 2 3 4 5 ...
//   a stage: k down, rows across, a row of it   k 1:         rows 0 1 2 3 ...
//   starts 4 banks after the one above          k 2:                 rows 0 1 ...
//   a lane's rows: 4 neighbours, again 16 on; its columns: 4 neighbours, again 32 on
//
// Bytes expected: 4 (m n k / block_n + m n k / block_m) through L2.
#include "lab/kernels/gemm/simt_tile.cuh"
#include "ptx/cp_async.cuh"

constexpr int LANES_M = 4, LANES_N = 8;  // lanes of a warp, down and across its tile
constexpr int WARPS_N = schedule::block_n / (LANES_N * schedule::thread_n);  // warp tiles side by side
constexpr int RUN = 8;                             // neighbouring lanes that copy a whole sector of a row
constexpr int RUNS = schedule::block_k / RUN;      // of a row of a k-step
constexpr int TOGETHER = schedule::threads / RUN;  // rows that all threads copy at once
constexpr int X_COPIES = schedule::block_m / TOGETHER * RUNS, W_COPIES = schedule::block_n / TOGETHER * RUNS;

template <int height>
using Transposed = float[schedule::block_k][height + VECTOR];

struct Stage {
    alignas(16) Transposed<schedule::block_m> x;
    alignas(16) Transposed<schedule::block_n> w;
};

struct Shared {
    Stage stage[schedule::stages];
};

static_assert(sizeof(Shared) == schedule::shared_bytes, "what the launch asks for");

// What this thread copies of an operand at each k-step: of every TOGETHER-th row of the tile each RUN-th element.
struct Source {
    const float* from;  // the first of them, at the next k-step
    int rows;           // rows that the matrix has from there on
};

__device__ __forceinline__ Source source_of(const float* matrix, int row, int rows, int k) {
    const int first = row + threadIdx.x / RUN;
    return {matrix + int64_t(first) * k + threadIdx.x % RUN, rows - first};
}

// Start this thread's copy of a number; `left`: elements that a row has from `source` on. Zeros beyond the matrix.
template <int height>
__device__ __forceinline__ void copy(Transposed<height>& tile, const Source& source, int number, int k, int left) {
    const int row = number / RUNS * TOGETHER, at = number % RUNS * RUN;
    ptx::cp_async::copy_4(ptx::address::shared(&tile[threadIdx.x % RUN + at][threadIdx.x / RUN + row]),
                          source.from + int64_t(row) * k + at, row < source.rows && at < left ? 4 : 0);
}

// The rows of x and the columns of w^T that a thread multiplies at one k.
struct Fragments {
    float x[schedule::thread_m], w[schedule::thread_n];
};

template <int count>
__device__ __forceinline__ void load_vectors(float (&to)[count], const float* from, int apart) {
#pragma unroll
    for (int i = 0; i < count; i += VECTOR) {
        const float4 four = *reinterpret_cast<const float4*>(from + i * apart);
        to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
}

__device__ __forceinline__ void load_fragments(Fragments& to, const Stage& stage, int at, int row, int column) {
    load_vectors(to.x, &stage.x[at][row], LANES_M);
    load_vectors(to.w, &stage.w[at][column], LANES_N);
}

using Patch = float[schedule::thread_m][schedule::thread_n];

// Back and forth, so that each multiply-add shares x or w with the one before.
__device__ __forceinline__ void multiply(Patch& sums, const Fragments& fragments) {
#pragma unroll
    for (int i = 0; i < schedule::thread_m; ++i)
#pragma unroll
        for (int step = 0; step < schedule::thread_n; ++step) {
            const int j = i % 2 ? schedule::thread_n - 1 - step : step;
            sums[i][j] = fmaf(fragments.x[i], fragments.w[j], sums[i][j]);
        }
}

// The patch whose first element is (row, column) of y, clipped.
__device__ __forceinline__ void store_patch(float* y, const Patch& sums, int row, int column, int m, int n) {
#pragma unroll
    for (int i = 0; i < schedule::thread_m; ++i)
#pragma unroll
        for (int j = 0; j < schedule::thread_n; j += VECTOR) {
            const int r = row + i / VECTOR * VECTOR * LANES_M + i % VECTOR, c = column + j * LANES_N;
            if (r < m && c < n)
                *reinterpret_cast<float4*>(y + int64_t(r) * n + c) =
                    make_float4(sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]);
        }
}

extern "C" __global__ void __launch_bounds__(schedule::threads, schedule::ctas_per_sm)
    gemm_warp_tile(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, int m, int n,
                   int k) {
    extern __shared__ __align__(16) uint8_t dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    const Tile tile = own_tile(m, n);
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    // Bits 1 and 4 of the lane go down, the others across: lanes l and l ^ 1 read the same of x, l and l ^ 2 the same
    // of w, which lets shared memory serve half a warp's 16-byte vectors at once.
    const int row = (warp / WARPS_N * LANES_M * schedule::thread_m) + (lane / 2 % 2 + lane / 16 * 2) * VECTOR;
    const int column = (warp % WARPS_N * LANES_N * schedule::thread_n) + (lane % 2 + lane / 4 % 4 * 2) * VECTOR;

    Source x_source = source_of(x, tile.row, m, k), w_source = source_of(w, tile.column, n, k);
    int left = k - threadIdx.x % RUN;
    const auto start_copy = [&](Stage& stage, int number) {
        if (number < X_COPIES)
            copy<schedule::block_m>(stage.x, x_source, number, k, left);
        else
            copy<schedule::block_n>(stage.w, w_source, number - X_COPIES, k, left);
    };
    const auto next_step = [&] {
        ptx::cp_async::commit_group();
        x_source.from += schedule::block_k, w_source.from += schedule::block_k, left -= schedule::block_k;
    };
    for (int s = 0; s < schedule::stages - 1; ++s) {
#pragma unroll
        for (int number = 0; number < X_COPIES + W_COPIES; ++number) start_copy(shared.stage[s], number);
        next_step();
    }
    const auto arrive = [] {  // the next stage is here, and all have left the one before
        ptx::cp_async::wait_group<schedule::stages - 2>();
        __syncthreads();
    };

    Patch sums = {};
    Fragments fragments[2];
    int full = 0, empty = schedule::stages - 1;  // the stage that is multiplied, the stage that all have left
    arrive();
    load_fragments(fragments[0], shared.stage[full], 0, row, column);
    for (int k0 = 0; k0 < k; k0 += schedule::block_k) {
#pragma unroll
        for (int at = 0; at < schedule::block_k; ++at) {
#pragma unroll
            for (int number = at; number < X_COPIES + W_COPIES; number += schedule::block_k)
                start_copy(shared.stage[empty], number);
            if (at + 1 == schedule::block_k) {
                next_step();
                arrive();
                empty = full;
                full = full + 1 == schedule::stages ? 0 : full + 1;
            }
            load_fragments(fragments[(at + 1) % 2], shared.stage[full], (at + 1) % schedule::block_k, row, column);
            multiply(sums, fragments[at % 2]);
        }
    }
    ptx::cp_async::wait_group<0>();  // zeros from beyond k: a CTA may not end before they are there
    store_patch(y, sums, tile.row + row, tile.column + column, m, n);
}
