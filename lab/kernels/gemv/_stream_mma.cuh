// The shared memory of gemv_mma, the work of a CTA, and the stream of weights of each of its warps.
#pragma once
#include "lab/kernels/gemv/_runs.cuh"
#include "ptx/cp_async.cuh"

constexpr int CLUSTER = schedule::cluster, SPLIT = schedule::split_k, WARPS = schedule::warps;
constexpr int STEP = schedule::runs * COLUMNS;  // columns of w that a warp takes at once
constexpr int ROUND = SPLIT * STEP;             // that the warps of a team take together

// Scales of the row tiles of a step: 64 bytes for each tile and group, along k. Each lane copies as much of them.
constexpr int STEP_GROUPS = schedule::runs * GROUPS;
constexpr int PAIRS_BYTES = 2 * TILE * sizeof(fp16);     // scale and offset of 16 rows
constexpr int TILE_SCALES = STEP_GROUPS * PAIRS_BYTES;   // bytes of a row tile
constexpr int SCALES = GROUPED ? schedule::rows * TILE_SCALES : 0;
constexpr int SCALES_VECTOR = SCALES / LANES < 4 ? 4 : SCALES / LANES < VECTOR ? SCALES / LANES : VECTOR;

// A warp copies row-major weights by requests of some whole rows of a step, 16 bytes a lane. They lie in a stage row
// behind row, each at another bank than the one before.
constexpr int REQUESTS = schedule::runs * VECTORS;    // of a row tile
constexpr int STEP_ROW = schedule::runs * ROW_RUN;    // bytes of a row of w in a step
constexpr int REQUEST_ROWS = REQUEST / STEP_ROW;
constexpr int ROW_LANES = LANES / REQUEST_ROWS;

constexpr int ROW_PITCH = STEP_ROW + VECTOR;
constexpr int REQUEST_PITCH = GROUPED ? REQUEST : REQUEST_ROWS * ROW_PITCH;

constexpr int WEIGHTS_BYTES = schedule::rows * REQUESTS * REQUEST_PITCH;  // of a step
constexpr int STAGE_BYTES = WEIGHTS_BYTES + SCALES;                       // the scales lie behind the weights

// A row of sums starts at another bank, so that a warp writes its fragments without conflicts.
constexpr int TEAM_ROWS = schedule::rows * TILE;
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

// The rows of w whose sums a CTA of a cluster adds and stores, and what each CTA sends it.
constexpr int PART = (schedule::block_n + CLUSTER - 1) / CLUSTER;
using Inbox = float[schedule::block_m][PART];
constexpr int INBOXES = CLUSTER > 1 ? CLUSTER : 0;

// What this CTA computes: tokens, rows of w, columns; `part` of the rows it adds and stores, the last ranks fewer.
struct Work {
    int token, tokens, row, rank, part, first, end, pitch;

    __device__ __forceinline__ Work(int m, int k) {
        const int steps = (k + STEP - 1) / STEP;
        token = blockIdx.y * schedule::block_m;
        tokens = min(schedule::block_m, m - token);
        row = blockIdx.x / CLUSTER * schedule::block_n;
        rank = blockIdx.x % CLUSTER;
        part = max(min(PART, schedule::block_n - rank * PART), 0);
        first = rank * steps / CLUSTER * STEP;
        end = (rank + 1) * steps / CLUSTER * STEP;
        const int longest = (steps + CLUSTER - 1) / CLUSTER * STEP * int(sizeof(Element));
        pitch = (longest + 127) / 128 * 128 + X_PAD;
    }
};

__device__ __forceinline__ Inbox* inboxes(Shared& shared) { return reinterpret_cast<Inbox*>(&shared + 1); }
__device__ __forceinline__ uint8_t* x_rows(Shared& shared) {
    return reinterpret_cast<uint8_t*>(inboxes(shared) + INBOXES);
}

// A warp's stream of weights: where its lanes copy from next.
struct Stream {
    const uint8_t* from;    // this lane's first 16 bytes of the next step
    const uint8_t* scales;  // and of its scales
    int pitch;              // bytes from a row tile to the next; of row-major w, from a request to the next
    int scales_pitch;
    uint32_t to;           // this lane's 16 bytes of the ring's first stage
    int column, end;       // the next step's first, and the end of this CTA's
    int whole;             // steps before this column lie in w with all their columns and rows
    int weights, row_left;  // columns of w from this lane's first one on; rows from the warp's first one on

    __device__ __forceinline__ Stream(const Weight* w, const void* w_scale, const Work& work, int n, int k, int team,
                                      int warp, const uint8_t* ring)
        : column(work.first + warp * STEP), end(work.end) {
        const int lane = threadIdx.x % LANES, row = work.row + team * TEAM_ROWS;
        const auto* bytes = reinterpret_cast<const uint8_t*>(w);
        row_left = n - row;
        whole = row_left < TEAM_ROWS ? 0 : min(end, k / STEP * STEP);
        to = ptx::address::shared(ring) + lane * VECTOR;
        if constexpr (GROUPED) {
            weights = k;
            pitch = (k + 63) / 64 * REQUEST;
            scales_pitch = (k + GROUP - 1) / GROUP * PAIRS_BYTES;
            from = bytes + int64_t(row / TILE) * pitch + column * (TILE / 2) + lane * VECTOR;
            const int own = lane * SCALES_VECTOR;
            scales = static_cast<const uint8_t*>(w_scale) + int64_t(row / TILE + own / TILE_SCALES) * scales_pitch +
                     column / GROUP * PAIRS_BYTES + own % TILE_SCALES;
        } else {
            to += lane / ROW_LANES * (ROW_PITCH - STEP_ROW);
            weights = k - lane % ROW_LANES * (VECTOR / int(sizeof(Weight)));
            pitch = k * (REQUEST_ROWS * int(sizeof(Weight)));
            from = bytes + (int64_t(row + lane / ROW_LANES) * k + column) * sizeof(Weight) + lane % ROW_LANES * VECTOR;
        }
    }

    // Ask for the next step, if there is one; what lies beyond w becomes zero.
    __device__ __forceinline__ void fill(int stage) {
        if (column < whole)
            copy<true>(to + stage);
        else if (column < end)
            copy<false>(to + stage);
        ptx::cp_async::commit_group();
        column += ROUND;
        from += GROUPED ? ROUND * TILE / 2 : ROUND * int(sizeof(Weight));
        if constexpr (GROUPED) scales += SPLIT * STEP_GROUPS * PAIRS_BYTES;
    }

    template <bool whole>
    __device__ __forceinline__ void copy(uint32_t stage) const {
#pragma unroll
        for (int r = 0; r < schedule::rows; ++r)
#pragma unroll
            for (int q = 0; q < REQUESTS; ++q) {
                const int at = r * REQUESTS + q;
                const int row = GROUPED ? r * TILE : at * REQUEST_ROWS / EIGHT * EIGHT;  // n is a multiple of eight
                const int64_t offset = int64_t(GROUPED ? r : at) * pitch + (GROUPED ? q * REQUEST : 0);
                const bool inside = whole || (column + (GROUPED ? q * 64 : 0) < weights && row < row_left);
                ptx::cp_async::stream_16(stage + at * REQUEST_PITCH, from + offset, inside ? VECTOR : 0);
            }
        if constexpr (GROUPED) copy_scales<whole>(stage + WEIGHTS_BYTES);
    }

    template <bool whole>
    __device__ __forceinline__ void copy_scales(uint32_t stage) const {
        const int own = threadIdx.x % LANES * SCALES_VECTOR;
        stage -= threadIdx.x % LANES * (VECTOR - SCALES_VECTOR);
#pragma unroll
        for (int first = 0; first < SCALES; first += LANES * SCALES_VECTOR) {
            const int row = (first / TILE_SCALES + own / TILE_SCALES) * TILE;
            const int group = (first % TILE_SCALES + own % TILE_SCALES) / PAIRS_BYTES;
            const bool inside = whole || (column + group * GROUP < weights && row < row_left);
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
