// The shared memory of gemv_mma, the work of a CTA, and the stream of weights of each of its warps.
#pragma once
#include "lab/kernels/gemv/_runs.cuh"
#include "ptx/cp_async.cuh"

constexpr int CLUSTER = schedule::cluster, SPLIT = schedule::split_k, WARPS = schedule::warps;
constexpr int STEP = schedule::runs * COLUMNS;  // columns of w that a warp takes at once

// Scales of the row tiles of a step: 64 bytes for each tile and group, along k.
constexpr int STEP_GROUPS = schedule::runs * GROUPS;
constexpr int PAIRS_BYTES = 2 * TILE * sizeof(fp16);             // scale and offset of 16 rows
constexpr int TILE_SCALES = STEP_GROUPS * PAIRS_BYTES / VECTOR;  // vectors of a row tile
constexpr int SCALES = GROUPED ? schedule::rows * TILE_SCALES : 0;

// A row of sums starts at another bank, so that a warp writes its fragments without conflicts.
constexpr int SUMS = schedule::rows * TILE + 4;

struct Stage {
    Vector16 weights[schedule::rows][schedule::runs][VECTORS][LANES];
    Vector16 scales[SCALES > 0 ? SCALES : LANES];
};
constexpr int STAGE_BYTES = sizeof(Stage::weights) + SCALES * VECTOR;

// What a warp streams, and then its sums.
union alignas(VECTOR) Warp {
    uint8_t ring[schedule::stages * STAGE_BYTES];
    float sums[schedule::block_m][SUMS];
};

struct alignas(VECTOR) Shared {
    Warp warps[WARPS];
    uint64_t full[schedule::parts];  // one arrival, and the bytes of that part of x
    uint64_t arrived;                // one arrival, and the sums that all CTAs of the cluster send
};
static_assert(SCALES == 0 || sizeof(Stage) == STAGE_BYTES, "scales lie behind the weights");

// The rows of y^T that a CTA of a cluster sums and stores, in quads of four rows.
constexpr int QUADS = schedule::block_n / 4;
constexpr int PART = (QUADS + CLUSTER - 1) / CLUSTER;
constexpr int WIDTH = PART < LANES ? PART : LANES;       // quads of a token that a warp takes at once
constexpr int AT_ONCE = LANES / WIDTH;                   // tokens
constexpr int WIDTHS = (PART + WIDTH - 1) / WIDTH;       // of a part

// What the CTAs of the cluster send to one of them.
struct Inbox {
    float4 sums[schedule::block_m][PART];
};
constexpr int INBOXES = CLUSTER > 1 ? CLUSTER : 0;

// What this CTA computes: tokens and rows of w, steps along k.
struct Work {
    int token, tokens, row, rank, first, end, pitch;

    __device__ __forceinline__ Work(int m, int k) {
        const int steps = (k + STEP - 1) / STEP;
        token = blockIdx.y * schedule::block_m;
        tokens = min(schedule::block_m, m - token);
        row = blockIdx.x / CLUSTER * schedule::block_n;
        rank = blockIdx.x % CLUSTER;
        first = rank * steps / CLUSTER;
        end = (rank + 1) * steps / CLUSTER;
        const int longest = (steps + CLUSTER - 1) / CLUSTER * STEP * int(sizeof(Element));
        pitch = (longest + 127) / 128 * 128 + Run<Weight>::X_PAD;
    }

    // Steps that all warps of a team together take while they read one part of x, for each of them.
    __device__ __forceinline__ int rounds_of_part() const {
        const int rounds = (end - first + SPLIT - 1) / SPLIT;
        return (rounds + schedule::parts - 1) / schedule::parts;
    }
};

__device__ __forceinline__ Inbox* inboxes(Shared& shared) { return reinterpret_cast<Inbox*>(&shared + 1); }
__device__ __forceinline__ uint8_t* x_rows(Shared& shared) {
    return reinterpret_cast<uint8_t*>(inboxes(shared) + INBOXES);
}

// A warp's stream of weights: where its lanes copy from next, and to.
struct Stream {
    const uint8_t* from;    // this lane's first 16 bytes
    const uint8_t* scales;  // of the warp's first row tile
    int64_t pitch;          // bytes from a row tile to the next; of row-major w, its eight rows half as many
    int64_t scales_pitch;
    int step, end;    // the next step, and the end of this CTA's
    int k, row_left;  // columns of w; rows from the warp's first one on
    int groups;       // along k
    uint8_t* ring;
    int slot = 0;

    __device__ __forceinline__ Stream(const Weight* w, const void* w_scale, const Work& work, int n, int k, int team,
                                      int warp, uint8_t* ring)
        : step(work.first + warp), end(work.end), k(k), ring(ring) {
        const int lane = threadIdx.x % LANES, row = work.row + team * schedule::rows * TILE;
        const auto* bytes = reinterpret_cast<const uint8_t*>(w);
        row_left = n - row;
        if constexpr (GROUPED) {
            groups = (k + GROUP - 1) / GROUP;
            pitch = int64_t((k + 63) / 64) * (LANES * VECTOR);
            scales_pitch = int64_t(groups) * PAIRS_BYTES;
            from = bytes + row / TILE * pitch + int64_t(step) * (STEP * TILE / 2) + lane * VECTOR;
            scales = static_cast<const uint8_t*>(w_scale) + row / TILE * scales_pitch;
        } else {
            pitch = int64_t(k) * (TILE * sizeof(Weight));
            from = bytes + int64_t(row + lane / 4) * k * sizeof(Weight) +
                   int64_t(step) * (STEP * sizeof(Weight)) + lane % 4 * VECTOR;
        }
    }

    // Ask for the next step, if there is one; what lies beyond w becomes zero.
    __device__ __forceinline__ void fill() {
        if (step < end) {
            const uint32_t to = ptx::address::shared(ring + slot * STAGE_BYTES);
            copy_weights(to + threadIdx.x % LANES * VECTOR);
            if constexpr (GROUPED) copy_scales(to + sizeof(Stage::weights));
        }
        ptx::cp_async::commit_group();
        step += SPLIT;
        from += SPLIT * (GROUPED ? STEP * TILE / 2 : STEP * int(sizeof(Weight)));
        slot = slot + 1 == schedule::stages ? 0 : slot + 1;
    }

    __device__ __forceinline__ void copy_weights(uint32_t to) const {
        const int column = step * STEP + (GROUPED ? 0 : threadIdx.x % LANES % 4 * (COLUMNS / 4));
#pragma unroll
        for (int r = 0; r < schedule::rows; ++r)
#pragma unroll
            for (int c = 0; c < schedule::runs; ++c)
#pragma unroll
                for (int v = 0; v < VECTORS; ++v) {
                    const int at = GROUPED ? column + c * COLUMNS + v * (COLUMNS / VECTORS) : column + c * COLUMNS;
                    const int row = GROUPED ? r * TILE : r * TILE + v * (TILE / 2);
                    const int64_t offset = GROUPED ? r * pitch + (c * VECTORS + v) * (LANES * VECTOR)
                                                   : (2 * r + v) * (pitch / 2) + c * (COLUMNS * int(sizeof(Weight)));
                    ptx::cp_async::copy_16(to, from + offset, at < k && row < row_left ? VECTOR : 0);
                    to += LANES * VECTOR;
                }
    }

    __device__ __forceinline__ void copy_scales(uint32_t to) const {
#pragma unroll
        for (int first = 0; first < SCALES; first += LANES) {
            const int i = first + threadIdx.x % LANES;
            const int tile = i / TILE_SCALES, vector = i % TILE_SCALES;
            const int group = step * STEP_GROUPS + vector / (PAIRS_BYTES / VECTOR);
            const bool inside = group < groups && tile * TILE < row_left;
            const uint8_t* at = scales + tile * scales_pitch + int64_t(step) * (STEP_GROUPS * PAIRS_BYTES);
            if (i < SCALES) ptx::cp_async::copy_16(to + i * VECTOR, at + vector * VECTOR, inside ? VECTOR : 0);
        }
    }
};
