// Keys and values on their way to the consumers: shared memory, the producer's warp.
#pragma once
#include "lab/kernels/attention/_work.cuh"
#include "lab/kernels/common/cluster.cuh"
#include "lab/kernels/common/ring_position.cuh"
#include "ptx/address.cuh"
#include "ptx/fence.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/store.cuh"
#include "ptx/tma.cuh"
#include "ptx/types.cuh"
#include "schedule.cuh"

constexpr int ALIGNMENT = 1024;  // bytes, of a tile with the 128-byte swizzle
constexpr int MMA_M = 64;        // rows of a wgmma
constexpr int CONSUMERS = schedule::block_m / MMA_M;
constexpr int BOX_COLUMNS = 64;  // 128 bytes: one swizzled row
constexpr int BOXES = problem::head_dim / BOX_COLUMNS;

static_assert(problem::head_dim % BOX_COLUMNS == 0, "rows of whole boxes");

template <int rows>
using Tile = Element[BOXES][rows][BOX_COLUMNS];

struct alignas(ALIGNMENT) Shared {
    Tile<schedule::block_m> q;
    Tile<schedule::block_n> k[schedule::stages], v[schedule::stages];
    uint64_t q_full, q_empty;  // full: one arrival, and the bytes; empty: one arrival of every consumer warp
    uint64_t k_full[schedule::stages], k_empty[schedule::stages];  // empty: of every consumer warp of the cluster
    uint64_t v_full[schedule::stages], v_empty[schedule::stages];
    uint64_t v_landed;  // values whose last rows are not the sequence's
    uint64_t ticket_full, ticket_empty;  // empty, of rank 0's: one arrival of every producer
    int ticket;
    Work work[2];  // of the tile in q, and of the one before, by the parity of q_full
    Work done[CONSUMERS * WARPGROUP / WARP];  // of each consumer warp: of what it has yet to store
};

static_assert(sizeof(Shared) + ALIGNMENT ==
                  schedule::shared_rows * problem::head_dim * sizeof(Element) + schedule::further_shared_bytes,
              "what the launch asks for");

// A value that is the same in all lanes, for the compiler to know: addresses made of it need no vector registers.
__device__ __forceinline__ int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

// Dynamic shared memory from its first 1024-byte boundary on.
__device__ __forceinline__ Shared& aligned(uint8_t* dynamic) {
    const uint32_t past = ptx::address::shared(dynamic) % ALIGNMENT;
    return *reinterpret_cast<Shared*>(dynamic + (ALIGNMENT - past) % ALIGNMENT);
}

__device__ __forceinline__ void init(Shared& shared) {
    constexpr int READERS = CONSUMERS * WARPGROUP / WARP;
    ptx::mbarrier::init(shared.q_full, 1);
    ptx::mbarrier::init(shared.q_empty, READERS);
    ptx::mbarrier::init(shared.v_landed, 1);
    ptx::mbarrier::init(shared.ticket_full, 1);
    ptx::mbarrier::init(shared.ticket_empty, schedule::cluster);
    for (int stage = 0; stage < schedule::stages; ++stage) {
        ptx::mbarrier::init(shared.k_full[stage], 1);
        ptx::mbarrier::init(shared.k_empty[stage], schedule::cluster * READERS);
        ptx::mbarrier::init(shared.v_full[stage], 1);
        ptx::mbarrier::init(shared.v_empty[stage], schedule::cluster * READERS);
    }
    ptx::fence::mbarrier_init();
}

// Where keys and values lie: rows of whole sequences one after another, or pages that a block table names. A block comes
// in boxes of some rows; lane i of the producer's warp copies box i, to all CTAs of the cluster, which take turns.
constexpr int PART = schedule::block_n / schedule::cluster;
constexpr int PAGE = problem::page > 0 ? problem::page : PART;
constexpr int BOX_ROWS = PAGE < PART ? PAGE : PART;
constexpr int BOXES_HIGH = schedule::block_n / BOX_ROWS;

static_assert(PART % BOX_ROWS == 0 && PAGE % BOX_ROWS == 0 && BOXES_HIGH <= WARP, "whole boxes, one a lane");

struct Cache {
    const TensorMap &k_map, &v_map;
    const int* places;  // the block table, `row_pages` pages a sequence
    int kv_heads, row_pages, pages, rank;

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
    __device__ __forceinline__ void load(Tile<schedule::block_n>& to, int value, const Work& work, int block, int place,
                                         uint64_t& full) const {
        const TensorMap& map = value ? v_map : k_map;
        const int lane = threadIdx.x % WARP, at = key(work, block);
        if (lane == 0) ptx::mbarrier::arrive_expect_tx(full, sizeof(to));
        __syncwarp();
        if (lane >= BOXES_HIGH || lane % schedule::cluster != rank) return;
        const int row = problem::page == 0 ? work.head : at % PAGE;
        const int slice = problem::page == 0 ? place + at : (2 * place + value) * kv_heads + work.head;
#pragma unroll
        for (int box = 0; box < BOXES; ++box) {
            Element* into = to[box][lane * BOX_ROWS];
            if constexpr (schedule::cluster == 1)
                ptx::tma::load_3d(into, map, box * BOX_COLUMNS, row, slice, full);
            else
                ptx::tma::load_3d_multicast(into, map, box * BOX_COLUMNS, row, slice, full, (1 << schedule::cluster) - 1);
        }
    }
};

// Zeros in the rows from `row` on, by a warp.
template <int rows>
__device__ __forceinline__ void clear(Tile<rows>& tile, int row) {
    constexpr int CHUNKS = BOX_COLUMNS * sizeof(Element) / sizeof(Vector16);
#pragma unroll
    for (int box = 0; box < BOXES; ++box)
        for (int i = row * CHUNKS + threadIdx.x % WARP; i < rows * CHUNKS; i += WARP)
            reinterpret_cast<Vector16*>(tile[box])[i] = {};
    ptx::fence::proxy_async_shared();
    __syncwarp();
}

// Numbers of works: each cluster's first is its own number, the others come from a counter in global memory, asked for one
// work ahead, for all CTAs of a cluster by rank 0's. The counter is 0 again when every cluster has been told that there is
// no further work.
struct Tickets {
    Shared& shared;
    int* counter;
    int works, rank;
    uint32_t parity = 0;
    int index;

    static __device__ __forceinline__ int first() { return int(blockIdx.x) / schedule::cluster; }

    __device__ __forceinline__ void ask() {
        if (rank > 0 || threadIdx.x % WARP > 0) return;
        if constexpr (schedule::cluster > 1) ptx::mbarrier::wait(shared.ticket_empty, parity ^ 1);
        index = atomicAdd(counter, 1);
        if (index == works - 1) atomicExch(counter, 0);
        index += int(gridDim.x) / schedule::cluster;
        if constexpr (schedule::cluster > 1)
            for (int cta = 0; cta < schedule::cluster; ++cta)
                ptx::store::async_cluster(ptx::address::shared_of_cta(&shared.ticket, cta), index,
                                          ptx::address::shared_of_cta(&shared.ticket_full, cta));
    }

    __device__ __forceinline__ int get() {
        if constexpr (schedule::cluster > 1) {
            if (threadIdx.x % WARP == 0) ptx::mbarrier::arrive_expect_tx(shared.ticket_full, sizeof(shared.ticket));
            ptx::mbarrier::wait_cluster(shared.ticket_full, parity);
            parity ^= 1;
            index = shared.ticket;
            __syncwarp();
            if (threadIdx.x % WARP == 0) ptx::mbarrier::arrive_cluster(shared.ticket_empty, 0);
        }
        return uniform(index);
    }
};

// A warp that keeps the rings full: keys a block ahead of values, blocks from the last to the first.
struct Producer {
    Shared& shared;
    const TensorMap& q_map;
    const Cache& cache;
    const bool speaks = threadIdx.x % WARP == 0;  // this lane, for the warp
    Position k_at, v_at;
    uint32_t q_parity = 0, landed_parity = 0;
    int here = 0, next = 0;  // places of the block whose values are next, and of the one after

    __device__ __forceinline__ void keys(const Work& work, int block, int place) {
        ptx::mbarrier::wait(shared.k_empty[k_at.stage], k_at.parity ^ 1);  // on the first lap every stage is empty
        cache.load(shared.k[k_at.stage], 0, work, block, place, shared.k_full[k_at.stage]);
        k_at.advance();
    }

    __device__ __forceinline__ void values(const Work& work, int block, int place) {
        const int rows = work.keys - block * schedule::block_n;
        const bool ragged = rows < schedule::block_n;
        uint64_t& full = shared.v_full[v_at.stage];
        ptx::mbarrier::wait(shared.v_empty[v_at.stage], v_at.parity ^ 1);
        cache.load(shared.v[v_at.stage], 1, work, block, place, ragged ? shared.v_landed : full);
        if (ragged) {
            ptx::mbarrier::wait(shared.v_landed, landed_parity);
            landed_parity ^= 1;
            clear(shared.v[v_at.stage], rows);  // of what may be NaN, which no weight of 0 would make 0
            if (speaks) ptx::mbarrier::arrive(full);
        }
        v_at.advance();
    }

    // The next work for the consumers, whose queries are in `bytes` on their way.
    __device__ __forceinline__ void announce(const Work& work, uint32_t bytes) {
        ptx::mbarrier::wait(shared.q_empty, q_parity ^ 1);
        if (speaks) {
            shared.work[q_parity] = work;
            ptx::mbarrier::arrive_expect_tx(shared.q_full, bytes);
        }
        q_parity ^= 1;
    }

    __device__ __forceinline__ void queries(const Work& work) {
        announce(work, ROWS * problem::head_dim * sizeof(Element));
        if (!speaks) return;
#pragma unroll
        for (int box = 0; box < BOXES; ++box)
            ptx::tma::load_3d(shared.q[box], q_map, box * BOX_COLUMNS, work.head * problem::group, work.query,
                              shared.q_full);
    }

    // Rows of q that no load reaches.
    __device__ __forceinline__ void begin() const {
        if constexpr (ROWS < schedule::block_m) clear(shared.q, ROWS);
    }

    // The first keys of a tile, and its queries.
    __device__ __forceinline__ void start(const Work& work) {
        const int block = work.last - 1;
        if (block >= work.first) {
            here = cache.place(work, block);
            next = cache.place(work, max(block - 1, work.first));
            keys(work, block, here);
        }
        queries(work);
    }

    // The values of a block, and the keys of the next.
    __device__ __forceinline__ void go_on(const Work& work, int block) {
        const int later = cache.place(work, max(block - 2, work.first));
        if (block > work.first) keys(work, block - 1, next);
        values(work, block, here);
        here = next;
        next = later;
    }

    // A tile of queries, its keys and its values.
    __device__ __forceinline__ void feed(const Work& work) {
        start(work);
        for (int block = work.last - 1; block >= work.first; --block) go_on(work, block);
    }

    // There is no further work.
    __device__ __forceinline__ void end() {
        Work none = {};
        none.sequence = -1;
        announce(none, 0);
    }
};
