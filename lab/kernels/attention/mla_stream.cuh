// Queries and latents on their way to the warpgroups that multiply: shared memory, the warp that loads.
#pragma once
#include "lab/kernels/attention/mla_plan.cuh"
#include "lab/kernels/common/cluster.cuh"
#include "lab/kernels/common/ring_position.cuh"
#include "ptx/address.cuh"
#include "ptx/cluster.cuh"
#include "ptx/elect.cuh"
#include "ptx/fence.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/thread.cuh"
#include "ptx/tma.cuh"

using Element = problem::kv;  // of q, the cache and y

constexpr int WARPGROUP = 128;
constexpr int ALIGNMENT = 1024;  // bytes, of a tile with the 128-byte swizzle
constexpr int MMA_BYTES = 32;    // of a row along k, in an mma
constexpr int BOX_COLUMNS = 64;  // 128 bytes: one swizzled row
constexpr int BOXES = problem::head_dim / BOX_COLUMNS, VALUE_BOXES = problem::latent / BOX_COLUMNS;
constexpr int READERS = 2 * WARPGROUP / WARP;  // warps of a CTA that let go of a stage
// Of a stage's boxes, each with its barriers: values are added up in two groups of columns.
constexpr int GROUPS = 2;

// Boxes of values of the first group, in each half of them; the second has the others and the last box of keys.
constexpr int GROUP_BOXES = VALUE_BOXES / 2 / GROUPS;
__device__ __forceinline__ constexpr int group_of(int box) {
    return box == VALUE_BOXES ? 1 : box % (GROUPS * GROUP_BOXES) / GROUP_BOXES;
}

using Box = Element[BLOCK_N][BOX_COLUMNS];
using Tile = Box[BOXES];

static_assert(BLOCK_M == BLOCK_N, "queries come through the ring too, and weights lie where keys were");
static_assert(problem::latent % BOX_COLUMNS == 0 && problem::head_dim == problem::latent + BOX_COLUMNS,
              "of a key one box is no value: there the weights go");

// Of q as many fragments of 16 columns are in registers as there are registers; the rest of a part's queries stays
// here.
constexpr int MMA_K = 16;
using Columns = Element[BLOCK_M / 8][MMA_K / 8][8][8];  // 16 of them, in the order of a tile without swizzle

// Counts parts, for what is kept of two or three of them in turn.
struct Turn {
    int count = 0;  // modulo 6

    __device__ __forceinline__ int of_two() const { return count % 2; }
    __device__ __forceinline__ int of_three() const { return count % 3; }
    __device__ __forceinline__ void advance() { count = count == 5 ? 0 : count + 1; }
};

// What comes next to the ring: the queries of the part of this turn, or this block.
struct Loading {
    Turn turn;
    int block;  // -1: queries
};

struct alignas(ALIGNMENT) Shared {
    Tile ring[schedule::stages];
    Box q_rest;                                  // the last 64 columns of q
    Columns q_columns;                           // the 16 before those
    float inverse[2][BLOCK_M];                   // of the sum of each row's weights, for parts in turn
    uint8_t decay[schedule::stages][BLOCK_M];    // powers of two by which a block makes each row's earlier sums smaller
    Part parts[3];                               // that are multiplied, loaded, and come next, in turn
    Walk walk;
    Loading loading;
    bool last;  // of those who share a segment: to leave partial results
    uint64_t full[schedule::stages][GROUPS];     // one arrival, and the bytes
    uint64_t scored[schedule::stages];           // the keys have been multiplied
    uint64_t weighed[schedule::stages];          // the weights are there
    uint64_t empty[schedule::stages][GROUPS];    // an arrival of every reader in the cluster
};

static_assert(sizeof(Shared) == schedule::shared_bytes, "what the launch asks for");
static_assert(schedule::stages == 3, "a part's place in turn is free when three stages of others are behind it");

// A lane's value in all lanes, and for the compiler to know that it is the same: addresses made of it need no vector
// registers.
__device__ __forceinline__ int uniform(int value, int lane = 0) { return __shfl_sync(FULL, value, lane); }

__device__ __forceinline__ void init(Shared& shared) {
    for (int stage = 0; stage < schedule::stages; ++stage) {
        ptx::mbarrier::init(shared.scored[stage], WARPGROUP / WARP);
        ptx::mbarrier::init(shared.weighed[stage], WARPGROUP / WARP);
        for (int group = 0; group < GROUPS; ++group) {
            ptx::mbarrier::init(shared.full[stage][group], 1);
            ptx::mbarrier::init(shared.empty[stage][group], schedule::cluster * READERS);
        }
    }
    ptx::fence::mbarrier_init();
}

// One of each warp's lanes arrives.
__device__ __forceinline__ void arrive(uint64_t& barrier) {
    __syncwarp();
    if (threadIdx.x % WARP == 0) ptx::mbarrier::arrive(barrier);
}

// A warp has read a group of a stage: it arrives in every CTA that writes to it.
__device__ __forceinline__ void release(uint64_t& empty) {
    const int lane = threadIdx.x % WARP;
    if constexpr (schedule::cluster == 1) {
        if (lane == 0) ptx::mbarrier::arrive(empty);
    } else {
        if (lane < schedule::cluster) ptx::mbarrier::arrive_cluster(empty, lane);
    }
}

// Latents lie in rows of whole sequences one after another, or in pages that a block table names, whose rows are one
// after another too. A block comes in boxes of some rows; lane i of the loading warp copies box i.
constexpr int PAGE = problem::page > 0 ? problem::page : BLOCK_N;
constexpr int BOX_ROWS = PAGE < BLOCK_N ? PAGE : BLOCK_N;
constexpr int BOXES_HIGH = BLOCK_N / BOX_ROWS;

static_assert(BLOCK_N % BOX_ROWS == 0 && PAGE % BOX_ROWS == 0 && BOXES_HIGH <= WARP, "whole boxes, one a lane");
static_assert(BOX_ROWS % 8 == 0, "whole patterns of the swizzle");

struct Cache {
    const TensorMap& map;
    const int32_t* places;  // the first row of each sequence; or the block table
    int table_width, pages;

    // The row where this lane's box of a block lies; beyond the sequence's last page in that page again.
    __device__ __forceinline__ int row(const Part& part, int block) const {
        const int token = block * BLOCK_N + ptx::thread::index() % WARP * BOX_ROWS;
        if constexpr (problem::page == 0) return places[part.index] + token;
        const int own = max(min(token, (part.kv_len - 1) / BOX_ROWS * BOX_ROWS), 0);
        const int page = places[part.index * table_width + own / PAGE];
        return min(max(page, 0), pages - 1) * PAGE + own % PAGE;
    }
};

// All CTAs together bring the block table to L2; a warp does this.
__device__ __forceinline__ void ask_for_table(const int32_t* table, int entries) {
    constexpr int LINE = 128 / sizeof(int32_t);
    const int at = (blockIdx.x * WARP + threadIdx.x % WARP) * LINE;
    if (problem::page > 0 && at < entries) ptx::prefetch::to_l2(table + at);
}

// What the cluster has to do first, and where to go on from there.
__device__ __forceinline__ void plan(Shared& shared, const Batch& batch) {
    Walk walk(batch, Cuts(batch, gridDim.x / schedule::cluster), blockIdx.x / schedule::cluster);
    if (threadIdx.x == 0) {
        shared.parts[0] = walk.next(batch);
        shared.walk = walk;
        shared.loading.turn = {};
        shared.loading.block = -1;
    }
}

// A warp that keeps the ring full: each part's queries, then its latents.
struct Loader {
    Shared& shared;
    const TensorMap& q_map;
    const Cache& cache;
    const int rank;
    int row = 0;  // of this lane's box in the block that comes next

    // The part after that of `turn`, if there is one: known to all who wait for anything that is loaded after this.
    __device__ __forceinline__ void find_after(Turn turn, const Batch& batch) {
        Part& part = shared.parts[turn.of_three()];
        if (part.exists() && ptx::elect::one()) {
            turn.advance();
            Part& after = shared.parts[turn.of_three()];
            after = shared.walk.next(batch);
            part.more = after.exists();
        }
        __syncwarp();
    }

    // One group of what comes next to a stage, once the phase of this parity has let go of it.
    template <int group>
    __device__ __forceinline__ void load(int stage, uint32_t parity) {
        const Part& part = shared.parts[shared.loading.turn.of_three()];
        if (!part.exists()) return;
        const bool queries = shared.loading.block < 0;
        uint64_t& full = shared.full[stage][group];
        ptx::mbarrier::wait(shared.empty[stage][group], parity);
        constexpr int BYTES = (group == 0 ? 2 * GROUP_BOXES : BOXES - 2 * GROUP_BOXES) * sizeof(Box);
        if (ptx::elect::one()) ptx::mbarrier::arrive_expect_tx(full, BYTES);
        __syncwarp();
        const TensorMap& map = queries ? q_map : cache.map;
        const uint16_t ctas = queries ? 1 << rank : (1 << schedule::cluster) - 1;  // that get the box
        const auto load_boxes = [&](int i, int from) {  // boxes of the rows from i * BOX_ROWS on
#pragma unroll
            for (int box = 0; box < BOXES; ++box) {
                if (group_of(box) != group || !(queries || box % schedule::cluster == rank)) continue;
                Element* to = shared.ring[stage][box][i * BOX_ROWS];
                if constexpr (schedule::cluster == 1)
                    ptx::tma::load_2d(to, map, box * BOX_COLUMNS, from, full);
                else
                    ptx::tma::load_2d_multicast(to, map, box * BOX_COLUMNS, from, full, ctas);
            }
        };
        if constexpr (BOXES_HIGH == 1) {
            const int from = queries ? part.row + rank * BLOCK_M : uniform(row);
            if (ptx::elect::one()) load_boxes(0, from);
        } else {
            const int lane = ptx::thread::index() % WARP;
            if (lane < (queries ? 1 : BOXES_HIGH)) load_boxes(lane, queries ? part.row + rank * BLOCK_M : row);
        }
        __syncwarp();
        if constexpr (group == 1) advance(part, queries ? part.lo : shared.loading.block + 1);
    }

    // On to the next block, whose places are read a stage before their use.
    __device__ __forceinline__ void advance(const Part& part, int block) {
        __syncwarp();
        if (ptx::elect::one()) {
            Loading& loading = shared.loading;
            loading.block = block < part.hi ? block : -1;
            if (block == part.hi) loading.turn.advance();
        }
        __syncwarp();
        if (block == part.hi || ptx::thread::index() % WARP >= BOXES_HIGH) return;
        row = cache.row(part, block);
    }
};
