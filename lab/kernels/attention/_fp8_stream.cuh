// Keys and values in fp8 on their way to the consumers: shared memory, the producer's warp, the warps that turn values.
#pragma once
#include "lab/kernels/attention/_work.cuh"
#include "lab/kernels/common/ring_position.cuh"
#include "ptx/address.cuh"
#include "ptx/fence.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/stmatrix.cuh"
#include "ptx/tma.cuh"
#include "ptx/types.cuh"
#include "schedule.cuh"

constexpr int ALIGNMENT = 1024;  // bytes, of a tile with the 128-byte swizzle
constexpr int MMA_M = 64;        // rows of a wgmma
constexpr int CONSUMERS = schedule::block_m / MMA_M;
constexpr int READERS = CONSUMERS * WARPGROUP / WARP;
constexpr int BOX_BYTES = 128;                                 // of a row, which the swizzle permutes
constexpr int BOX_COLUMNS = BOX_BYTES / int(sizeof(Element));  // of a box of queries
constexpr int QUERY_BOXES = problem::head_dim / BOX_COLUMNS;
constexpr int GROUP = 16;                            // keys, and elements of a value, of a block that is turned at once
constexpr int GROUPS = schedule::block_n / GROUP;

static_assert(problem::head_dim == BOX_BYTES && schedule::block_n == BOX_BYTES, "square tiles, which turn in place");

using Row = uint8_t[BOX_BYTES];

// What scores are multiplied by, log2(e) included, and what weighted sums of values are.
struct Scales {
    float score, value;
};

struct alignas(ALIGNMENT) Shared {
    Row q[QUERY_BOXES][schedule::block_m];
    Row k[schedule::stages][schedule::block_n], v[schedule::stages][schedule::block_n];
    uint64_t q_full, q_empty;  // full: one arrival, and the bytes; empty: one arrival of every consumer warp
    uint64_t k_full[schedule::stages], k_empty[schedule::stages];
    uint64_t v_landed[schedule::stages], v_full[schedule::stages], v_empty[schedule::stages];  // full: of every turner
    int v_rows[schedule::stages];  // of the values that are the sequence's; -1: there are no further ones
    Work work[2];                  // of the tile in q, and of the one before, by the parity of q_full
    Scales scales[2];
};

static_assert(sizeof(Shared) + ALIGNMENT == schedule::ring_bytes + sizeof(Shared::q) + schedule::further_shared_bytes,
              "what the launch asks for");

// Dynamic shared memory from its first 1024-byte boundary on.
__device__ __forceinline__ Shared& aligned(uint8_t* dynamic) {
    const uint32_t past = ptx::address::shared(dynamic) % ALIGNMENT;
    return *reinterpret_cast<Shared*>(dynamic + (ALIGNMENT - past) % ALIGNMENT);
}

__device__ __forceinline__ void init(Shared& shared) {
    ptx::mbarrier::init(shared.q_full, 1);
    ptx::mbarrier::init(shared.q_empty, READERS);
    for (int stage = 0; stage < schedule::stages; ++stage) {
        ptx::mbarrier::init(shared.k_full[stage], 1);
        ptx::mbarrier::init(shared.k_empty[stage], READERS);
        ptx::mbarrier::init(shared.v_landed[stage], 1);
        ptx::mbarrier::init(shared.v_full[stage], schedule::turners);
        ptx::mbarrier::init(shared.v_empty[stage], READERS);
    }
    ptx::fence::mbarrier_init();
}

// Where keys and values lie: rows of whole sequences one after another, or pages that a block table names. A block comes
// in boxes of some rows; lane i of the producer's warp copies box i.
constexpr int PAGE = problem::page > 0 ? problem::page : schedule::block_n;
constexpr int BOX_ROWS = PAGE < schedule::block_n ? PAGE : schedule::block_n;
constexpr int BOXES_HIGH = schedule::block_n / BOX_ROWS;

static_assert(PAGE % BOX_ROWS == 0 && BOXES_HIGH <= WARP, "whole boxes, one a lane");

struct Cache {
    const TensorMap &k_map, &v_map;
    const int* places;  // the block table, `row_pages` pages a sequence
    int kv_heads, row_pages, pages;

    // The first key of this lane's box of the block; beyond the sequence's last page that page again.
    __device__ __forceinline__ int key(const Work& work, int block) const {
        const int key = block * schedule::block_n + threadIdx.x % WARP * BOX_ROWS;
        return problem::page == 0 ? key : max(min(key, (work.keys - 1) / BOX_ROWS * BOX_ROWS), 0);
    }

    // The page of this lane's box, read a block ahead of its use; or the sequence's first row.
    __device__ __forceinline__ int place(const Work& work, int block) const {
        if constexpr (problem::page == 0) return work.key;
        const int page = places[work.sequence * row_pages + key(work, block) / PAGE];
        return min(max(page, 0), pages - 1);
    }

    // Load this lane's box; `value` is 0 for keys, 1 for values. Rows beyond the sequence may be anything.
    __device__ __forceinline__ void load(Row (&to)[schedule::block_n], int value, const Work& work, int block, int place,
                                         uint64_t& full) const {
        const int lane = threadIdx.x % WARP, at = key(work, block);
        if (lane == 0) ptx::mbarrier::arrive_expect_tx(full, sizeof(to));
        __syncwarp();
        if (lane >= BOXES_HIGH) return;
        const int row = problem::page == 0 ? work.head : at % PAGE;
        const int slice = problem::page == 0 ? place + at : (2 * place + value) * kv_heads + work.head;
        ptx::tma::load_3d(to[lane * BOX_ROWS], value ? v_map : k_map, 0, row, slice, full);
    }
};

// A warp that keeps the rings full: keys a block ahead of values, blocks from the last to the first.
struct Producer {
    Shared& shared;
    const TensorMap& q_map;
    const Cache& cache;
    const float *q_scale, *k_scale, *v_scale;
    const float scale;
    const bool speaks = threadIdx.x % WARP == 0;  // this lane, for the warp
    Position k_at, v_at;
    uint32_t q_parity = 0;
    int here = 0, next = 0;  // places of the block whose values are next, and of the one after

    __device__ __forceinline__ void keys(const Work& work, int block, int place) {
        ptx::mbarrier::wait(shared.k_empty[k_at.stage], k_at.parity ^ 1);  // on the first lap every stage is empty
        cache.load(shared.k[k_at.stage], 0, work, block, place, shared.k_full[k_at.stage]);
        k_at.advance();
    }

    __device__ __forceinline__ void values(const Work& work, int block, int place) {
        ptx::mbarrier::wait(shared.v_empty[v_at.stage], v_at.parity ^ 1);
        if (speaks) shared.v_rows[v_at.stage] = work.keys - block * schedule::block_n;
        cache.load(shared.v[v_at.stage], 1, work, block, place, shared.v_landed[v_at.stage]);
        v_at.advance();
    }

    // The next work for the consumers, whose queries are in `bytes` on their way.
    __device__ __forceinline__ void announce(const Work& work, const Scales& scales, uint32_t bytes) {
        ptx::mbarrier::wait(shared.q_empty, q_parity ^ 1);
        if (speaks) {
            shared.work[q_parity] = work;
            shared.scales[q_parity] = scales;
            ptx::mbarrier::arrive_expect_tx(shared.q_full, bytes);
        }
        q_parity ^= 1;
    }

    __device__ __forceinline__ void queries(const Work& work) {
        Scales scales = {scale * k_scale[work.head], v_scale[work.head]};
        if constexpr (sizeof(Element) == 1) scales.score *= q_scale[work.head];
        announce(work, scales, ROWS * problem::head_dim * sizeof(Element));
        if (!speaks) return;
#pragma unroll
        for (int box = 0; box < QUERY_BOXES; ++box)
            ptx::tma::load_3d(shared.q[box], q_map, box * BOX_COLUMNS, work.head * problem::group, work.query,
                              shared.q_full);
    }

    // Zeros in the rows of q that no load reaches.
    __device__ __forceinline__ void begin() const {
        if constexpr (ROWS == schedule::block_m) return;
        constexpr int CHUNKS = BOX_BYTES / sizeof(Vector16);
#pragma unroll
        for (int box = 0; box < QUERY_BOXES; ++box)
            for (int i = ROWS * CHUNKS + threadIdx.x % WARP; i < schedule::block_m * CHUNKS; i += WARP)
                reinterpret_cast<Vector16*>(shared.q[box])[i] = {};
        __syncwarp();
    }

    // A tile of queries, its keys and its values.
    __device__ __forceinline__ void feed(const Work& work) {
        int block = work.last - 1;
        if (block >= work.first) {
            here = cache.place(work, block);
            next = cache.place(work, max(block - 1, work.first));
            keys(work, block, here);
        }
        queries(work);
        for (; block >= work.first; --block) {
            const int later = cache.place(work, max(block - 2, work.first));
            if (block > work.first) keys(work, block - 1, next);
            values(work, block, here);
            here = next;
            next = later;
        }
    }

    // There is no further work, for the consumers and for those that turn values.
    __device__ __forceinline__ void end() {
        Work none = {};
        none.sequence = -1;
        announce(none, {}, 0);
        ptx::mbarrier::wait(shared.v_empty[v_at.stage], v_at.parity ^ 1);
        if (speaks) {
            shared.v_rows[v_at.stage] = -1;
            ptx::mbarrier::arrive(shared.v_landed[v_at.stage]);
        }
    }
};

// One of the warps that turn values: rows of keys become rows of elements, as wgmma wants them of fp8. 16 keys and 16
// elements lie in the same place as 16 elements and 16 keys of the mirrored one, so that pairs of them are exchanged. In
// each row the keys of 16 come as accumulators of scores have them, 0, 1, 8, 9, 2, 3, 10, 11 ..., and of 16 elements the
// even ones come first: bytes change places inside a thread alone, and rows are stored to different banks.
struct Turner {
    static constexpr int PAIRS = GROUPS * (GROUPS - 1) / 2;
    static constexpr int EXCHANGES = PAIRS + GROUPS / 2;  // those on the diagonal by twos

    Shared& shared;
    const int number;  // of this warp among its kind

    __device__ __forceinline__ void run() const {
        for (Position at;; at.advance()) {
            ptx::mbarrier::wait(shared.v_landed[at.stage], at.parity);
            const int rows = shared.v_rows[at.stage];
            if (rows < 0) return;
            if (rows < schedule::block_n)
                turn<true>(shared.v[at.stage], rows);
            else
                turn<false>(shared.v[at.stage], rows);
            ptx::fence::proxy_async_shared();
            __syncwarp();
            if (threadIdx.x % WARP == 0) ptx::mbarrier::arrive(shared.v_full[at.stage]);
        }
    }

    // A block of which `rows` keys are the sequence's; others may be NaN, which no weight of 0 would make 0.
    template <bool ragged>
    __device__ __forceinline__ void turn(Row (&tile)[schedule::block_n], int rows) const {
        const int lane = threadIdx.x % WARP, upper = lane / 16;
#pragma unroll 2
        for (int i = number; i < EXCHANGES; i += schedule::turners) {
            const bool diagonal = i >= PAIRS;
            const int one = diagonal ? 2 * (i - PAIRS) : i % GROUPS;
            const int other = diagonal ? one + 1 : (one + i / GROUPS + 1) % GROUPS;
            const int row = upper ? other : one, column = diagonal ? row : upper ? one : other;
            uint32_t m[4];
            ptx::ldmatrix::x4_transposed(m, ptx::address::shared(chunk(tile, row, column)));
            if constexpr (ragged) {
#pragma unroll
                for (int at = 0; at < 4; ++at)
                    m[at] &= seen(rows - (at / 2 ? other : one) * GROUP - at % 2 * 8 - lane % 4 * 2);
            }
            __syncwarp();
            ptx::stmatrix::x4(chunk(tile, column, row), __byte_perm(m[0], m[1], 0x6420),
                              __byte_perm(m[0], m[1], 0x7531), __byte_perm(m[2], m[3], 0x6420),
                              __byte_perm(m[2], m[3], 0x7531));
        }
    }

    // This lane's 16 bytes of a group of rows.
    static __device__ __forceinline__ uint8_t* chunk(Row (&tile)[schedule::block_n], int group, int column) {
        const int row = group * GROUP + threadIdx.x % 16;
        return &tile[row][(column ^ row % 8) * 16];
    }

    // Which bytes of two keys are there.
    static __device__ __forceinline__ uint32_t seen(int keys) { return keys > 1 ? ~0u : keys == 1 ? 0xffffu : 0; }
};
