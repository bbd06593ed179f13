// attention_mma_sync: y = softmax(q k^T / sqrt(head_dim)) v in one launch, scores in registers: prefill on Ampere.
//
// Idea: a tile of queries stays in shared memory while all keys and values that it sees come by, block after block. A
// row's maximum and sum run along; where the maximum grows, what was summed up so far is scaled down. The accumulators of
// the scores, two numbers a register, are the operand of the next product as they are.
// Adds to attention_naive: nothing quadratic in memory, copies that do not wait.
// Dao, "FlashAttention-2" (2023).
//
// Warp roles: all alike. Each copies its share of every block and owns 16 rows of the tile.
//
//   cp.async     q, k 0 | v 0         | k 1              | v 1         | k 2              ...
//   mma.sync            | qk 0        | softmax 0 | wv 0 | qk 1        | softmax 1 | wv 1 ...
//   barrier             ^             ^                  ^             ^                  a block is full, one is free
//
// Bytes expected past L1: q once, k and v once for every tile of queries that sees them. From HBM: each once, while the
// tiles in flight share them in L2.
#include "lab/kernels/attention/_results.cuh"
#include "lab/kernels/attention/mma_tiles.cuh"
#include "ptx/cp_async.cuh"

constexpr int DIM = problem::head_dim;
constexpr int PAGE = problem::page > 0 ? problem::page : 1;

struct Shared {
    MmaTile<schedule::block_m, DIM> q;
    MmaTile<schedule::block_n, DIM> k, v;
};

static_assert(sizeof(Shared) == schedule::shared_rows * DIM * sizeof(Element), "what the launch asks for");
static_assert(schedule::threads == schedule::block_m / MMA_M * WARP, "16 rows a warp");

// Heads of a row of an array of a token's queries, or keys, which has so many of them.
__device__ __forceinline__ int row_heads(int heads, int kv_heads) {
    return problem::packed ? kv_heads * (problem::group + 2) : heads;
}

// Copy a tile, by all threads; `from(row)` is where a row lies, or null for zeros. Closes a group.
template <typename Tile, typename From>
__device__ __forceinline__ void copy(Tile& tile, From from) {
#pragma unroll 4
    for (int i = threadIdx.x; i < Tile::ROWS * Tile::CHUNKS; i += schedule::threads) {
        const int row = i / Tile::CHUNKS, chunk = i % Tile::CHUNKS;
        const Element* at = from(row);
        ptx::cp_async::copy_16(ptx::address::shared(&tile.at(row, chunk)), at + chunk * CHUNK, at ? 16 : 0);
    }
    ptx::cp_async::commit_group();
}

// Where keys and values lie: rows of whole sequences one after another, or pages of any size that a block table names.
struct Cache {
    const Element *k, *v;  // paged: both in k
    const int* places;
    int kv_heads, row_pages, pages;

    // A key of the work's head, or with `value` a value; null beyond the sequence.
    __device__ __forceinline__ const Element* row(const Work& work, int value, int key) const {
        if (key >= work.keys) return nullptr;
        if constexpr (problem::page == 0) {
            return (value ? v : k) + (int64_t(work.key + key) * row_heads(kv_heads, kv_heads) + work.head) * DIM;
        } else {
            const int page = min(max(places[work.sequence * row_pages + key / PAGE], 0), pages - 1);
            const int64_t slice = (int64_t(2) * page + value) * kv_heads + work.head;
            return k + (slice * PAGE + key % PAGE) * DIM;
        }
    }
};

// All copies are there, for all threads, and what was read before may be copied over.
__device__ __forceinline__ void meet() {
    ptx::cp_async::wait_group<0>();
    __syncthreads();
}

struct Rows {
    const Shared& shared;
    const int row = threadIdx.x / WARP * MMA_M;  // this warp's first
    Softmax softmax;
    float y[DIM / 2] = {};

    __device__ __forceinline__ Rows(const Shared& shared, float scale) : shared(shared), softmax(scale) {}

    __device__ __forceinline__ void multiply_keys(float (&scores)[schedule::block_n / 2]) const {
        auto& sums = reinterpret_cast<float (&)[schedule::block_n / 8][4]>(scores);
#pragma unroll
        for (int step = 0; step < DIM / MMA_K; ++step) {
            uint32_t a[4];
            load_a(a, shared.q, row, step);
            multiply_rows<schedule::block_n>(sums, a, shared.k, step);
        }
    }

    __device__ __forceinline__ void add_values(const float (&weights)[schedule::block_n / 2]) {
        auto& sums = reinterpret_cast<float (&)[DIM / 8][4]>(y);
        uint32_t a[schedule::block_n / MMA_K][4];
        pack<Element>(a, weights);
#pragma unroll
        for (int step = 0; step < schedule::block_n / MMA_K; ++step)
            multiply_columns<DIM>(sums, a[step], shared.v, step);
    }
};

extern "C" __global__ void __launch_bounds__(schedule::threads)
    attention_mma_sync(const Element* q, const Element* k, const Element* v, Element* y, float* lse,
                       const int* q_starts, const int* kv_lens, const int* places, int batch, int q_len,
                       int kv_heads, int row_pages, int pages, float scale) {
    extern __shared__ __align__(128) uint8_t dynamic[];
    constexpr float LOG2_E = 1.4426950408889634f;
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    const Lengths lengths{q_starts, kv_lens, places, batch, q_len, kv_heads};
    const Results results{y, lse, kv_heads, {}};
    Rows rows(shared, scale * LOG2_E);
    Work work;
    if (!lengths.work(blockIdx.x, 0, work)) return;
    if (work.first >= work.last) return results.store_nothing(work, rows.row);

    const Cache cache{k, v, places, kv_heads, row_pages, pages};
    const auto copy_block = [&](MmaTile<schedule::block_n, DIM>& tile, int value, int block) {
        copy(tile, [&](int row) { return cache.row(work, value, block * schedule::block_n + row); });
    };
    copy(shared.q, [&](int row) -> const Element* {
        const int token = row / problem::group, head = work.head * problem::group + row % problem::group;
        if (row >= ROWS || token >= work.tokens) return nullptr;
        return q + (int64_t(work.query + token) * row_heads(kv_heads * problem::group, kv_heads) + head) * DIM;
    });
    copy_block(shared.k, 0, work.last - 1);
    for (int block = work.last - 1; block >= work.first; --block) {
        meet();
        copy_block(shared.v, 1, block);
        float scores[schedule::block_n / 2] = {};
        rows.multiply_keys(scores);
        meet();
        if (block > work.first) copy_block(shared.k, 0, block - 1);
        if (block >= work.ragged_end() || block < work.ragged_start())
            visible(work, rows.row + threadIdx.x % WARP / 4, block * schedule::block_n).mask(scores);
        rows.softmax.take(scores);
        rows.softmax.rescale(rows.y);
        rows.add_values(scores);
    }
    results.store(rows.y, rows.softmax, work, rows.row);
}
