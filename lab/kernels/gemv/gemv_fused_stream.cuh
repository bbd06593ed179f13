// The shared memory of gemv_fused, the row tiles of a CTA, and the warp that copies weights.
#pragma once
#include "lab/kernels/common/ring_position.cuh"
#include "lab/kernels/gemv/mma_tiles.cuh"
#include "ptx/bulk.cuh"
#include "ptx/convert.cuh"
#include "ptx/createpolicy.cuh"
#include "ptx/fence.cuh"
#include "ptx/mbarrier.cuh"
#include "schedule.cuh"

using Weight = problem::weights;

constexpr int WARPS = schedule::warps;  // that multiply
constexpr int CONSUMERS = WARPS * LANES;
constexpr bool GROUPED = problem::group > 0;
constexpr int HALVES = problem::swiglu ? 2 : 1;  // row tiles that make one of y

// A packet is what a warp takes of a row tile at once: 32 bytes a lane of bf16 and fp8, 64 bytes of each row; of packed
// weights two tiles (sim/int4.py).
constexpr int ROW_BYTES = 4 * VECTOR;
constexpr int PACKET_COLUMNS = GROUPED ? 128 : ROW_BYTES / int(sizeof(Weight));
constexpr int STEPS = PACKET_COLUMNS / MMA_K;  // mma of a packet
constexpr int X_VECTORS = STEPS / 2;           // that a lane reads of x for one
constexpr int LANE_X = GROUPED ? 2 * VECTOR : X_VECTORS * VECTOR;  // bytes from a lane's to the next lane's
constexpr int PACKED_BYTES = LANES * VECTOR;                       // of a packed tile
constexpr int PACKET_BYTES = 2 * PACKED_BYTES;
constexpr int PAIRS_BYTES = 2 * MMA_M * int(sizeof(fp16));  // scale and offset of 16 rows and a group
constexpr int GROUP = GROUPED ? problem::group : PACKET_COLUMNS;
constexpr int PACKET_PAIRS = PACKET_COLUMNS / GROUP * PAIRS_BYTES;

constexpr int PACKETS = schedule::unroll * WARPS;  // of a stage
constexpr int STAGE_COLUMNS = PACKETS * PACKET_COLUMNS;
static_assert(schedule::step_bytes == PACKETS * ROW_BYTES, "as the launch has it");
constexpr int PITCH = schedule::step_bytes + (PACKETS % 2 ? 0 : ROW_BYTES);  // two neighbouring rows lie at other banks
constexpr int W_BYTES = GROUPED ? PACKETS * PACKET_BYTES : MMA_M * PITCH;

struct alignas(16) Stage {
    uint8_t w[W_BYTES];
    uint8_t pairs[GROUPED ? PACKETS * PACKET_PAIRS : VECTOR];
};

using Sums = float[HALVES][WARPS][schedule::block_m][MMA_M];

struct alignas(128) Shared {
    uint64_t full[schedule::stages];   // one arrival, and the bytes of the stage
    uint64_t empty[schedule::stages];  // one arrival from every warp that multiplies
    float squares[schedule::block_m][WARPS];
    Sums sums[2];
};

__device__ __forceinline__ Stage& stage_of(Shared& shared, int stage) {
    return reinterpret_cast<Stage*>(&shared + 1)[stage];
}
__device__ __forceinline__ uint8_t* x_of(Shared& shared) {
    return reinterpret_cast<uint8_t*>(&stage_of(shared, schedule::stages));
}
__device__ __forceinline__ int x_pitch(int k) { return k * int(sizeof(bf16)) + VECTOR; }

// The row tiles of y that this CTA computes: as many as every other one's, or one less.
struct Work {
    int first, end;

    __device__ __forceinline__ explicit Work(int tiles)
        : first(int(int64_t(tiles) * blockIdx.x / gridDim.x)), end(int(int64_t(tiles) * (blockIdx.x + 1) / gridDim.x)) {}
};

__device__ __forceinline__ void start(Shared& shared) {
    for (int stage = 0; stage < schedule::stages; ++stage) {
        ptx::mbarrier::init(shared.full[stage], 1);
        ptx::mbarrier::init(shared.empty[stage], WARPS);
    }
    ptx::fence::mbarrier_init();
}

// A stage of row-major weights: each of 16 lanes copies a row's part.
__device__ __forceinline__ void copy_rows(Stage& stage, uint64_t& full, const uint8_t* tile, int first, int columns, int k,
                                          uint64_t policy) {
    const int lane = threadIdx.x % LANES;
    const uint32_t bytes = columns * int(sizeof(Weight));
    if (lane == 0) ptx::mbarrier::arrive_expect_tx(full, MMA_M * bytes);
    __syncwarp();
    if (lane < MMA_M)
        ptx::bulk::load(stage.w + lane * PITCH, tile + (int64_t(lane) * k + first) * int(sizeof(Weight)), bytes, full,
                        policy);
}

// A stage of packed weights, which lie together, and their pairs.
__device__ __forceinline__ void copy_packed(Stage& stage, uint64_t& full, const uint8_t* tile, const uint8_t* pairs,
                                            int first, int columns, uint64_t policy) {
    if (threadIdx.x % LANES != 0) return;
    const uint32_t bytes = columns * (MMA_M / 2), pair_bytes = (columns + GROUP - 1) / GROUP * PAIRS_BYTES;
    ptx::mbarrier::arrive_expect_tx(full, bytes + pair_bytes);
    ptx::bulk::load(stage.w, tile + int64_t(first) * (MMA_M / 2), bytes, full, policy);
    ptx::bulk::load(stage.pairs, pairs + first / GROUP * PAIRS_BYTES, pair_bytes, full, policy);
}

// One warp keeps the ring full; nobody need have begun to empty it.
__device__ __forceinline__ void produce(Shared& shared, const Work& work, const uint8_t* w, const uint8_t* w_scale,
                                        int tiles, int k) {
    const uint64_t policy = ptx::createpolicy::evict_first();
    Position at;
    for (int tile = work.first; tile < work.end; ++tile)
        for (int half = 0; half < HALVES; ++half) {
            const int64_t row_tile = tile + half * tiles;
            for (int first = 0; first < k; first += STAGE_COLUMNS, at.advance()) {
                const int columns = min(STAGE_COLUMNS, k - first);
                Stage& stage = stage_of(shared, at.stage);
                uint64_t& full = shared.full[at.stage];
                ptx::mbarrier::wait(shared.empty[at.stage], at.parity ^ 1);
                if constexpr (GROUPED) {
                    const int groups = (k + GROUP - 1) / GROUP;
                    copy_packed(stage, full, w + row_tile * (k * (MMA_M / 2)), w_scale + row_tile * (groups * PAIRS_BYTES),
                                first, columns, policy);
                } else {
                    copy_rows(stage, full, w + row_tile * MMA_M * k * int(sizeof(Weight)), first, columns, k, policy);
                }
            }
        }
}
