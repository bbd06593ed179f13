// gemv_mma_staged: y[m, n] = x[m, k] @ w[n, k].T for few rows of x, the tokens: batched decode, weights through a ring.
//
// Idea: gemv_mma asks for 64 or 128 bytes of a row at once, and for no more while it multiplies. Here every warp copies
// `segment` bytes of each of its rows by cp.async into a ring of its own, so that some stages are always under way, and
// takes its fragments from there: the order of k within a sum is free, so 16 bytes of a row are a fragment as they are,
// if x is read in the same order. x comes through L1.
// Adds to gemv_mma: whole lines and more of a row at once, loads that take no registers and never pause.
#include "lab/kernels/common/dequantise.cuh"
#include "lab/kernels/gemv/mma_tiles.cuh"
#include "ptx/address.cuh"
#include "ptx/convert.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/griddepcontrol.cuh"
#include "ptx/load.cuh"
#include "schedule.cuh"

using Element = problem::activations;  // of x, and what the tensor cores multiply
using Weight = problem::weights;
using Output = problem::output;

constexpr int TOKEN_TILES = schedule::block_m / MMA_N;
constexpr int WARPS = schedule::warps, TILES = schedule::tiles, SEGMENT = schedule::segment;
constexpr int ROWS = TILES * MMA_M;
constexpr int COLUMNS = SEGMENT / sizeof(Weight);   // of a stage
constexpr int PART = 64;                            // bytes of a row that four lanes have
constexpr int PART_COLUMNS = PART / sizeof(Weight);
constexpr int STEPS = PART_COLUMNS / MMA_K;
constexpr int X_VECTORS = sizeof(Element) / sizeof(Weight);  // of a lane, for as many columns as it has of w
constexpr int AT_ONCE = LANES * VECTOR / SEGMENT;   // rows of a request
constexpr int STAGE = ROWS * SEGMENT;
constexpr int OUTPUTS = schedule::block_m * ROWS;

struct Shared {
    uint8_t ring[WARPS][schedule::stages][STAGE];
    float sums[WARPS][schedule::block_m][ROWS + 4];
};

// Sixteen bytes of a row of a stage; odd rows have halves of a line swapped, for their banks.
__device__ __forceinline__ uint32_t place(int row, int byte) { return row * SEGMENT + (byte ^ (row % 2 * PART)); }

extern "C" __global__ void __launch_bounds__(schedule::threads, schedule::ctas_per_sm)
    gemv_mma_staged(const Element* __restrict__ x, const Weight* __restrict__ w, const float* __restrict__ w_scale,
                    Output* __restrict__ y, int m, int n, int k) {
    extern __shared__ __align__(128) uint8_t dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    const int warp = __shfl_sync(~0u, threadIdx.x / LANES, 0), lane = threadIdx.x % LANES, g = lane / 4, t = lane % 4;
    const int64_t token0 = int64_t(blockIdx.y) * schedule::block_m;
    const int tokens = int(min(int64_t(schedule::block_m), m - token0)), row0 = blockIdx.x * ROWS;
    uint8_t* ring = shared.ring[warp][0];

    // This lane's part of each request: one of its rows, 16 bytes.
    const int own_row = lane / (SEGMENT / VECTOR), own_byte = lane % (SEGMENT / VECTOR) * VECTOR;
    const auto* bytes = reinterpret_cast<const uint8_t*>(w);
    const int64_t pitch = int64_t(k) * sizeof(Weight);
    const uint32_t to = ptx::address::shared(ring);
    int asked = warp * COLUMNS;  // first column of the next stage
    auto fill = [&](int stage) {
        const uint8_t* from = bytes + int64_t(row0 + own_row) * pitch + asked * int(sizeof(Weight)) + own_byte;
        const bool inside = asked + own_byte / int(sizeof(Weight)) < k;
        if (asked < k)
#pragma unroll
            for (int r = 0; r < ROWS; r += AT_ONCE, from += AT_ONCE * pitch) {
                const bool there = inside && row0 + r + own_row < n;
                ptx::cp_async::copy_16(to + stage * STAGE + place(r + own_row, own_byte), there ? from : bytes, there ? VECTOR : 0);
            }
        ptx::cp_async::commit_group();
        asked += WARPS * COLUMNS;
    };
#pragma unroll
    for (int stage = 0; stage < schedule::stages; ++stage) fill(stage);
    ptx::griddepcontrol::launch_dependents();

    const uint8_t* from_x[TOKEN_TILES];
#pragma unroll
    for (int j = 0; j < TOKEN_TILES; ++j)
        from_x[j] = reinterpret_cast<const uint8_t*>(x + (token0 + min(j * MMA_N + g, tokens - 1)) * k + t * (PART_COLUMNS / 4));
    ptx::griddepcontrol::wait();

    float sum[TILES][TOKEN_TILES][4] = {};
    int stage = 0;
#pragma unroll 1
    for (int at = warp * COLUMNS; at < k; at += WARPS * COLUMNS) {
        constexpr int PARTS = SEGMENT / PART;
        Vector16 b[PARTS][TOKEN_TILES][X_VECTORS];
#pragma unroll
        for (int p = 0; p < PARTS; ++p)
#pragma unroll
            for (int j = 0; j < TOKEN_TILES; ++j)
#pragma unroll
                for (int i = 0; i < X_VECTORS; ++i) {
                    const int first = at + p * PART_COLUMNS;
                    const bool inside = first + t * (PART_COLUMNS / 4) < k;
                    b[p][j][i] = ptx::load::cached_if(inside ? from_x[j] + first * sizeof(Element) + i * VECTOR : from_x[j], inside);
                }
        ptx::cp_async::wait_group<schedule::stages - 1>();
        __syncwarp();
        const uint8_t* here = ring + stage * STAGE;
#pragma unroll
        for (int p = 0; p < PARTS; ++p)
#pragma unroll
            for (int r = 0; r < TILES; ++r) {
                const Vector16 upper = *reinterpret_cast<const Vector16*>(here + place(r * MMA_M + g, p * PART + t * VECTOR));
                const Vector16 lower = *reinterpret_cast<const Vector16*>(here + place(r * MMA_M + g + 8, p * PART + t * VECTOR));
#pragma unroll
                for (int s = 0; s < STEPS; ++s) {
                    uint32_t a[4];
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const Vector16& words = i % 2 ? lower : upper;
                        if constexpr (sizeof(Weight) == 1)
                            a[i] = bf16_of_fp8(words.words[s], i / 2 * 2);
                        else
                            a[i] = words.words[2 * s + i / 2];
                    }
#pragma unroll
                    for (int j = 0; j < TOKEN_TILES; ++j) {
                        const Vector16& four = b[p][j][s / 2];
                        const uint32_t own[2] = {four.words[s % 2 * 2], four.words[s % 2 * 2 + 1]};
                        ptx::mma::m16n8k16<Element>(sum[r][j], a, own);
                    }
                }
            }
        __syncwarp();
        fill(stage);
        stage = stage + 1 == schedule::stages ? 0 : stage + 1;
    }
#pragma unroll
    for (int r = 0; r < TILES; ++r)
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                shared.sums[warp][j * MMA_N + t * 2 + i % 2][r * MMA_M + g + i / 2 * 8] = sum[r][j][i];
    __syncthreads();
    float scale = 1;
    if (problem::scaled && !problem::row_scales) scale = w_scale[0];
#pragma unroll 1
    for (int index = threadIdx.x; index < OUTPUTS; index += schedule::threads) {
        const int token = index / ROWS, row = index % ROWS;
        if (token >= tokens || row0 + row >= n) continue;
        float total = 0;
#pragma unroll
        for (int s = 0; s < WARPS; ++s) total += shared.sums[s][token][row];
        if constexpr (problem::row_scales) scale = w_scale[row0 + row];
        ptx::convert::from_float(y[(token0 + token) * n + row0 + row], total * scale);
    }
}
