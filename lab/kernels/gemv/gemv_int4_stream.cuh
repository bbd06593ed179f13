// The shared memory of gemv_int4, the work of a CTA, and the stream of weights of each of its warps.
#pragma once
#include "lab/kernels/gemv/mma_tiles.cuh"
#include "ptx/address.cuh"
#include "ptx/cp_async.cuh"
#include "schedule.cuh"

constexpr int TOKEN_TILES = schedule::block_m / MMA_N;

constexpr int CLUSTER = schedule::cluster, SPLIT = schedule::split_k, WARPS = schedule::warps;
constexpr int STEP = schedule::block_k;  // columns of w that a warp takes at once
constexpr int ROUND = SPLIT * STEP;      // that the warps of a team take together

// A packed tile of w (sim/int4.py), which a warp copies at once, 16 bytes a lane. A row tile has some in a step.
constexpr int PACKED_COLUMNS = 64;
constexpr int PACKED_BYTES = LANES * VECTOR;
constexpr int PACKED_TILES = STEP / PACKED_COLUMNS;
constexpr int WEIGHTS = schedule::rows * PACKED_TILES * PACKED_BYTES;  // bytes of a step

// Scales of the row tiles of a step: 64 bytes for each tile and group, along k. Each lane copies as much of them.
constexpr int GROUPS = STEP / problem::group;
constexpr int PAIRS_BYTES = 2 * MMA_M * sizeof(fp16);  // scale and offset of 16 rows
constexpr int TILE_SCALES = GROUPS * PAIRS_BYTES;     // bytes of a row tile
constexpr int SCALES = schedule::rows * TILE_SCALES;
constexpr int SCALES_VECTOR = SCALES / LANES < 4 ? 4 : SCALES / LANES < VECTOR ? SCALES / LANES : VECTOR;

constexpr int STAGE_BYTES = WEIGHTS + SCALES;  // the scales lie behind the weights
constexpr int X_PAD = 16;                      // bytes between rows of x, modulo 128, for its banks

// With swiglu half of a team's row tiles are of the gate, half of what it gates.
constexpr int HALVES = problem::swiglu ? 2 : 1;
constexpr int HALF_TILES = schedule::rows / HALVES;

// A row of sums starts at another bank, so that a warp writes its fragments without conflicts.
constexpr int TEAM_ROWS = schedule::rows * MMA_M;
constexpr int TEAM_COLUMNS = TEAM_ROWS / HALVES;  // of y
constexpr int SUMS = TEAM_ROWS + 4;

// What a warp streams, and then its sums.
union alignas(128) Warp {
    uint8_t ring[schedule::stages * STAGE_BYTES];
    float sums[schedule::block_m][SUMS];
};

struct alignas(128) Shared {
    Warp warps[WARPS];
    uint64_t full[schedule::parts];  // one arrival, and the bytes of that part of x
    uint64_t arrived;                // one arrival, and the sums that all CTAs of the cluster send
};

static_assert(HALVES == 1 || (schedule::rows % 2 == 0 && SCALES <= LANES * SCALES_VECTOR),
              "both halves in a team, their scales in one request");

// The columns of y that a CTA of a cluster adds up and stores, and what each CTA sends it, of both halves.
constexpr int BLOCK_COLUMNS = schedule::block_n / HALVES;
constexpr int PART = (BLOCK_COLUMNS + CLUSTER - 1) / CLUSTER;
using Inbox = float[schedule::block_m][HALVES * PART];
constexpr int INBOXES = CLUSTER > 1 ? CLUSTER : 0;

// What this CTA computes: tokens, rows of w, columns; `part` of the rows it adds and stores, the last ranks fewer. With
// swiglu rows are those of the gate, which are columns of y.
struct Work {
    int token, tokens, row, rank, part, first, end, pitch;

    __device__ __forceinline__ Work(int m, int k) {
        const int steps = (k + STEP - 1) / STEP;
        token = blockIdx.y * schedule::block_m;
        tokens = min(schedule::block_m, m - token);
        row = blockIdx.x / CLUSTER * BLOCK_COLUMNS;
        rank = blockIdx.x % CLUSTER;
        part = max(min(PART, BLOCK_COLUMNS - rank * PART), 0);
        first = rank * steps / CLUSTER * STEP;
        end = (rank + 1) * steps / CLUSTER * STEP;
        pitch = (steps + CLUSTER - 1) / CLUSTER * STEP * int(sizeof(bf16)) + X_PAD;
    }
};

__device__ __forceinline__ Inbox* inboxes(Shared& shared) { return reinterpret_cast<Inbox*>(&shared + 1); }
__device__ __forceinline__ uint8_t* x_rows(Shared& shared) {
    return reinterpret_cast<uint8_t*>(inboxes(shared) + INBOXES);
}

// A warp's stream of weights: where its lanes copy from next.
struct Stream {
    const uint8_t* from;      // this lane's first 16 bytes of the next step
    const uint8_t* scales;    // and of its scales
    int pitch, scales_pitch;  // bytes from a row tile to the next
    int64_t half;             // and from the gate's to those that it gates
    uint32_t to;              // this lane's 16 bytes of the ring's first stage
    int column, end;          // the next step's first, and the end of this CTA's
    int whole;                // steps before this column lie in w with all their columns and rows
    int k, row_left;          // columns of w; its rows from the warp's first one on

    __device__ __forceinline__ Stream(const uint8_t* w, const uint8_t* w_scale, const Work& work, int n, int k,
                                      int team, int warp, const uint8_t* ring)
        : column(work.first + warp * STEP), end(work.end), k(k) {
        const int lane = threadIdx.x % LANES, row = work.row + team * TEAM_COLUMNS, columns = n / HALVES;
        row_left = columns - row;
        whole = row_left < TEAM_COLUMNS ? 0 : min(end, k / STEP * STEP);
        to = ptx::address::shared(ring) + lane * VECTOR;
        pitch = (k + PACKED_COLUMNS - 1) / PACKED_COLUMNS * PACKED_BYTES;
        from = w + int64_t(row / MMA_M) * pitch + column * (MMA_M / 2) + lane * VECTOR;
        scales_pitch = (k + problem::group - 1) / problem::group * PAIRS_BYTES;
        half = int64_t(columns / MMA_M) * pitch;
        const int own = lane * SCALES_VECTOR, tile = own / TILE_SCALES;
        const int tiles = HALVES == 1 ? tile : tile % HALF_TILES + tile / HALF_TILES * (columns / MMA_M);
        scales = w_scale + int64_t(row / MMA_M + tiles) * scales_pitch + column / problem::group * PAIRS_BYTES +
                 own % TILE_SCALES;
    }

    // Ask for the next step, if there is one; what lies beyond w becomes zero.
    __device__ __forceinline__ void fill(int stage) {
        if (column < whole)
            copy<true>(to + stage);
        else if (column < end)
            copy<false>(to + stage);
        ptx::cp_async::commit_group();
        column += ROUND;
        from += ROUND * MMA_M / 2;
        scales += SPLIT * TILE_SCALES;
    }

    template <bool whole>
    __device__ __forceinline__ void copy(uint32_t stage) const {
#pragma unroll
        for (int r = 0; r < schedule::rows; ++r)
#pragma unroll
            for (int tile = 0; tile < PACKED_TILES; ++tile) {
                const bool inside = whole || (column + tile * PACKED_COLUMNS < k && r % HALF_TILES * MMA_M < row_left);
                const uint8_t* at = from + int64_t(r % HALF_TILES) * pitch + r / HALF_TILES * half;
                ptx::cp_async::stream_16(stage + (r * PACKED_TILES + tile) * PACKED_BYTES, at + tile * PACKED_BYTES,
                                         inside ? VECTOR : 0);
            }
        copy_scales<whole>(stage + WEIGHTS);
    }

    template <bool whole>
    __device__ __forceinline__ void copy_scales(uint32_t stage) const {
        const int own = threadIdx.x % LANES * SCALES_VECTOR;
        stage -= threadIdx.x % LANES * (VECTOR - SCALES_VECTOR);
#pragma unroll
        for (int first = 0; first < SCALES; first += LANES * SCALES_VECTOR) {
            const int tile = first / TILE_SCALES + own / TILE_SCALES;
            const int row = (HALVES == 1 ? tile : tile % HALF_TILES) * MMA_M;
            const int group = (first % TILE_SCALES + own % TILE_SCALES) / PAIRS_BYTES;
            const bool inside = whole || (column + group * problem::group < k && row < row_left);
            const uint8_t* at = scales + int64_t(first / TILE_SCALES) * scales_pitch + first % TILE_SCALES;
            const int nbytes = inside ? SCALES_VECTOR : 0;
            if (SCALES < LANES * SCALES_VECTOR && own >= SCALES) continue;
            if constexpr (SCALES_VECTOR == 4)
                ptx::cp_async::copy_4(stage + first, at, nbytes);
            else if constexpr (SCALES_VECTOR == 8)
                ptx::cp_async::copy_8(stage + first, at, nbytes);
            else
                ptx::cp_async::copy_16(stage + first, at, nbytes);
        }
    }
};
