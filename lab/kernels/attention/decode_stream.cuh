// The cache of decode attention, streamed: each team of warps copies the units it will multiply to a ring of its own in
// shared memory, many ahead, and waits for nobody else.
#pragma once
#include "lab/kernels/attention/decode_plan.cuh"
#include "ptx/address.cuh"
#include "ptx/barrier.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/prefetch.cuh"

using Element = problem::kv;

constexpr int DIM = problem::head_dim;
constexpr int ROW_BYTES = DIM * sizeof(Element);
constexpr int ROW_LANES = ROW_BYTES / 16;               // that copy a row
constexpr int REQUEST_ROWS = LANES / ROW_LANES;         // that a warp copies at once
constexpr int REQUESTS = UNIT / REQUEST_ROWS;           // that copy the keys of a unit
constexpr int HALF = UNIT * ROW_BYTES;                  // bytes: the keys of a unit, or the values
constexpr int HEADS = schedule::heads;                  // KV heads of a CTA
constexpr int ROW_GROUPS = schedule::row_groups;        // warps of a team: they share its units, each with other queries
constexpr int SLOTS = schedule::warps / (HEADS * ROW_GROUPS);  // teams of a KV head: they take its units in turn
constexpr int STAGES = schedule::stages;
constexpr int ALIGNMENT = 128;  // bytes
// A team of a warpgroup multiplies whole units by wgmma, whose operands lie in rows of 128 bytes, one panel beside another.
constexpr bool WARPGROUP = schedule::unit > 16;
constexpr int PITCH_BYTES = WARPGROUP ? 128 : ROW_BYTES;  // from row to row of a panel
constexpr int PANEL_BYTES = UNIT * PITCH_BYTES;

static_assert(DIM % 64 == 0 && (DIM & (DIM - 1)) == 0 && ROW_BYTES <= 512, "a warp copies whole rows");
static_assert(SLOTS * HEADS * ROW_GROUPS == schedule::warps && SLOTS > 0, "whole teams");
constexpr int COPIERS = ROW_GROUPS < REQUESTS ? ROW_GROUPS : REQUESTS;  // warps of a team that copy
static_assert(REQUESTS % COPIERS == 0, "each copies as much");
static_assert(STAGES >= 2, "one is copied to while another is read");

struct alignas(ALIGNMENT) Stage {
    uint8_t bytes[2 * HALF];  // of keys, then of values; rows of 16-byte chunks, permuted
};
static_assert(!WARPGROUP || HALF % 1024 == 0, "whole patterns of the swizzle");

// Where chunk `chunk` of a row lies in it: eight rows have it in different banks.
__device__ __forceinline__ int permuted(int chunk, int row) {
    return chunk ^ (ROW_BYTES >= 128 ? row % 8 : row / 2 % 4);
}

// Where it lies in the keys or the values of a unit.
__device__ __forceinline__ int place(int chunk, int row) {
    constexpr int CHUNKS = PITCH_BYTES / 16;
    return chunk / CHUNKS * PANEL_BYTES + row * PITCH_BYTES + permuted(chunk % CHUNKS, row) * 16;
}

// The warp's number, the same in all lanes as the compiler knows then.
__device__ __forceinline__ int warp_index() { return __shfl_sync(FULL, int(threadIdx.x / LANES), 0); }

// What a warp is in its CTA.
struct Team {
    int head, slot;  // of the CTA's KV heads and of the head's teams
    int row_group;   // which queries are this warp's

    __device__ __forceinline__ Team() {
        const int warp = warp_index(), team = warp / ROW_GROUPS;
        head = team % HEADS;
        slot = team / HEADS;
        row_group = warp % ROW_GROUPS;
    }

    __device__ __forceinline__ int index() const { return slot * HEADS + head; }

    // Meet the other warps of the team.
    __device__ __forceinline__ void sync() const {
        if constexpr (ROW_GROUPS == 1)
            __syncwarp();
        else
            ptx::barrier::sync<ROW_GROUPS * LANES>(1 + index());
    }
};
static_assert(ROW_GROUPS == 1 || SLOTS * HEADS < 16, "a named barrier for each team");

constexpr bool PAGED = problem::page > 0;
constexpr int PAGE = PAGED ? problem::page : UNIT;    // tokens
constexpr int IDS = PAGE >= UNIT ? 1 : UNIT / PAGE;   // pages of a unit
constexpr int BLOCK = PAGED ? LANES / IDS : 1 << 20;  // units whose page ids a warp holds, one a lane
static_assert(UNIT % PAGE == 0 || PAGE % UNIT == 0, "a unit is whole pages or in one");

// How the cache lies: strides in elements. Of a paged cache `where` is the block table, else each sequence's first row.
struct Cache {
    const Element* k;
    int64_t value_offset;  // of a row's values from its keys
    const int32_t* where;
    int64_t page_stride;
    int token_stride, pages, table_width;
};

// Some units of this team, all of one sequence: `unit` and every SLOTS-th after it, below `end`.
struct Block {
    int unit, end;
    int kv_len, q_len;
    int round;  // of `unit` in the block
    int where;  // ids of its pages, one a lane, or the sequence's first row
};

// What a team copies: the units of its stretch, one after another.
struct Source {
    Cache cache;  // of this team's KV head
    Team team;
    Walk walk;
    Part part;
    int unit;  // where the block after the next begins
    Block now, next;
    int first_row;  // of the cache, of the sequence of this lane's number

    __device__ __forceinline__ Source(const Cache& cache, const Team& team, const Walk& start, int first_row)
        : cache(cache), team(team), walk(start), now{}, next{}, first_row(first_row) {
        part = walk.next();
        unit = part.lo + team.slot;
#pragma unroll 1
        for (int i = 0; i < 2; ++i) go_on();
    }

    __device__ __forceinline__ void go_on() {
        now = next;
        next = following();
    }

    // The block after those found so far: its page ids are on their way while the one before is copied.
    __device__ __forceinline__ Block following() {
        while (!ALONE && part.exists() && unit >= part.hi) {
            part = walk.next();
            unit = part.lo + team.slot;
        }
        if (!part.exists() || unit >= part.hi) return {};
        Block block = {unit, min(part.hi, unit + BLOCK * SLOTS), part.sequence.kv_len, part.sequence.q_len, 0};
        if constexpr (PAGED) {
            const int lane = threadIdx.x % LANES, own = unit + lane / IDS * SLOTS;
            const int token = own * UNIT + lane % IDS * PAGE;
            block.where = ptx::load::cached_4_if(cache.where + int64_t(part.index) * cache.table_width + token / PAGE,
                                                 own < block.end && token < block.kv_len);
        } else if constexpr (problem::uniform) {
            block.where = part.index * part.sequence.kv_len;
        } else {
            block.where = part.index < LANES ? __shfl_sync(FULL, first_row, part.index) : cache.where[part.index];
        }
        unit += BLOCK * SLOTS;
        return block;
    }

    // Where the page begins whose id a lane has; ids out of range are not followed.
    __device__ __forceinline__ int64_t page(int lane) const {
        const uint32_t id = __shfl_sync(FULL, now.where, lane);
        return int64_t(min(id, uint32_t(cache.pages - 1))) * cache.page_stride;
    }

    // Whether there is a next unit, all of whose tokens are older than the sequence's queries.
    __device__ __forceinline__ bool is_settled() const {
        return now.unit < now.end && (now.unit + 1) * UNIT <= now.kv_len - now.q_len;
    }

    // Copy the next unit, if there is one, to a stage. Tokens that are not there become 0.
    __device__ __forceinline__ void copy_next(Stage& stage) {
        if (now.unit < now.end) {
            if (ROW_GROUPS == COPIERS || team.row_group < COPIERS) copy(ptx::address::shared(&stage));
            now.unit += SLOTS;
            ++now.round;
            if (now.unit >= now.end) go_on();
        }
        ptx::cp_async::commit_group();
    }

    __device__ __forceinline__ void copy(uint32_t stage) const {
        const int lane = threadIdx.x % LANES, chunk = lane % ROW_LANES, first = now.unit * UNIT;
        const int own = team.row_group * REQUEST_ROWS + lane / ROW_LANES, seen = now.kv_len - first - own;
        const uint32_t to = stage + place(chunk, own);
        const Element* from = cache.k + chunk * (16 / sizeof(Element));
        if constexpr (!PAGED)
            from += int64_t(now.where + first + own) * cache.token_stride;
        else if constexpr (IDS == 1)
            from += page(now.round) + int64_t(first % PAGE + own) * cache.token_stride;
#pragma unroll
        for (int i = 0; i < REQUESTS / COPIERS; ++i) {
            constexpr int STEP = COPIERS * REQUEST_ROWS;  // rows
            const Element* row = from;
            if constexpr (IDS > 1)
                row += page(now.round * IDS + (own + i * STEP) / PAGE) +
                       int64_t((own + i * STEP) % PAGE) * cache.token_stride;
            else
                from += int64_t(STEP) * cache.token_stride;
            const uint32_t at = (to ^ permuted(0, i * STEP) * 16) + i * STEP * PITCH_BYTES;
            const int nbytes = i * STEP < seen ? 16 : 0;
            ptx::cp_async::copy_16(at, row, nbytes);
            ptx::cp_async::copy_16(at + HALF, row + cache.value_offset, nbytes);
        }
    }
};

// What a warp asks for beside the lengths: all CTAs together bring the block table to L2; of a contiguous cache the first
// row of the sequence of each lane's number.
__device__ __forceinline__ int ask_ahead(const Cache& cache, int batch_size) {
    constexpr int LINE = 128 / sizeof(int32_t);
    if constexpr (!PAGED && problem::uniform) return 0;
    if constexpr (!PAGED) {
        const int lane = threadIdx.x % LANES;
        return ptx::load::cached_4_if(cache.where + lane, lane < batch_size);
    }
    const int64_t at = (int64_t(blockIdx.x) * LANES + threadIdx.x) * LINE;
    if (threadIdx.x < LANES && at < int64_t(batch_size) * cache.table_width) ptx::prefetch::to_l2(cache.where + at);
    return 0;
}
