// gemm_warp_specialized: y[m, n] = x[m, k] @ w[n, k].T on the tensor cores, loading, multiplying and storing at once.
//
// Idea: warpgroups have jobs. One produces: a single thread keeps the ring full, across tiles, and gives its registers
// to two that consume. CTAs are persistent and walk over tiles, so that the loads of the next tile run during the
// epilogue, and its stores during the next tile's multiplications.
// Adds to gemm_wgmma: warp roles, register reallocation, persistence, overlapped stores, multicast in a cluster.
//
// Warp roles: warpgroup 0 produces; consumer c = 0, 1 owns half of the tile's rows.
//
//   producer    | tile 0: fill fill fill ...       | tile 1: fill fill fill ...
//   consumers       | tile 0: mma mma mma ... | round | tile 1: mma mma mma ...
//   stores                                       | tile 0: boxes of 64 x 64 |
//
// A cluster of two CTAs takes two tiles, one below the other: each loads half of their common rows of w and sends it to
// both. A stage is then free when the consumers of both CTAs have said so to both producers.
//
// Bytes expected through TMA: as gemm_wgmma; with a cluster of two, L2 is asked for w half as often.
#include "lab/kernels/gemm/_tile.cuh"
#include "ptx/barrier.cuh"
#include "ptx/bulk.cuh"
#include "ptx/cluster.cuh"
#include "ptx/fence.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/setmaxnreg.cuh"
#include "ptx/tma.cuh"

constexpr int CONSUMERS = 2;
constexpr int MMA_TILES = schedule::block_m / CONSUMERS / MMA_M;  // of 64 rows, in each consumer
constexpr int BOXES = schedule::block_n / schedule::block_k;      // of 64 columns, in each mma tile
constexpr int W_PART = schedule::block_n / schedule::cluster;     // rows of w that this CTA loads
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

struct Stage {
    bf16 x[schedule::block_m][schedule::block_k];
    bf16 w[schedule::block_n][schedule::block_k];
};

struct alignas(ALIGNMENT) Shared {
    Stage ring[schedule::stages];
    Box y[CONSUMERS][schedule::y_boxes];
    uint64_t full[schedule::stages];   // one arrival, and the bytes of the stage
    uint64_t empty[schedule::stages];  // one arrival from every consumer warp of the cluster
};

static_assert(sizeof(Stage) == schedule::stage_bytes, "what a full barrier expects");
static_assert(sizeof(Shared) + ALIGNMENT == schedule::shared_bytes, "what the launch asks for");
static_assert(schedule::threads == (1 + CONSUMERS) * WARPGROUP, "a producer and two consumers");
static_assert(MMA_TILES * BOXES % schedule::y_boxes == 0, "box b of every tile uses the same buffer");
static_assert(PRODUCER_REGISTERS + CONSUMERS * CONSUMER_REGISTERS <= (1 + CONSUMERS) * 168, "168 a thread at launch");

// The tiles of this CTA: its cluster takes every `clusters`-th, `cluster` tiles high, and the CTA its own rows of it.
struct Walk {
    int m, n, index, clusters, tiles, rank;

    __device__ __forceinline__ Walk(int m, int n)
        : m(m), n(n), index(blockIdx.x / schedule::cluster), clusters(gridDim.x / schedule::cluster),
          tiles(tiles_of(m, schedule::cluster * schedule::block_m) * tiles_of(n, schedule::block_n)),
          rank(schedule::cluster == 1 ? 0 : int(ptx::cluster::rank())) {}

    __device__ __forceinline__ bool next(Tile& tile) {
        if (index >= tiles) return false;
        tile = tile_at(index, m, n, schedule::cluster * schedule::block_m);
        tile.row += rank * schedule::block_m;
        index += clusters;
        return true;
    }
};

// One thread keeps the ring full.
__device__ __forceinline__ void producer(Shared& shared, const TensorMap& x, const TensorMap& w, Walk walk, int steps) {
    Position at;
    for (Tile tile; walk.next(tile);) {
        for (int step = 0; step < steps; ++step, at.advance()) {
            Stage& stage = shared.ring[at.stage];
            uint64_t& full = shared.full[at.stage];
            const int column = step * schedule::block_k;
            ptx::mbarrier::wait(shared.empty[at.stage], at.parity ^ 1);  // on the first lap every stage is empty
            ptx::mbarrier::arrive_expect_tx(full, schedule::stage_bytes);
            ptx::tma::load_2d(stage.x, x, column, tile.row, full);
            if constexpr (schedule::cluster == 1)
                ptx::tma::load_2d(stage.w, w, column, tile.column, full);
            else
                ptx::tma::load_2d_multicast(stage.w[walk.rank * W_PART], w, column, tile.column + walk.rank * W_PART,
                                            full, (1 << schedule::cluster) - 1);
        }
    }
}

// This warp reads the stage no more: tell the producer of every CTA that writes to it.
__device__ __forceinline__ void release(uint64_t& empty) {
    const int lane = threadIdx.x % WARP;
    if constexpr (schedule::cluster == 1) {
        if (lane == 0) ptx::mbarrier::arrive(empty);
    } else {
        if (lane < schedule::cluster) ptx::mbarrier::arrive_cluster(empty, lane);
    }
}

// Every k-step of this consumer's rows of one tile; one group stays in flight.
__device__ __forceinline__ void accumulate(float (&sum)[MMA_TILES][schedule::block_n / 2], Shared& shared, int consumer,
                                           int steps, Position& now) {
    int before = 0;
    for (int step = 0; step < steps; ++step, now.advance()) {
        const Stage& stage = shared.ring[now.stage];
        ptx::mbarrier::wait(shared.full[now.stage], now.parity);
        ptx::wgmma::fence();
#pragma unroll
        for (int t = 0; t < MMA_TILES; ++t)
            multiply(sum[t], stage.x[(consumer * MMA_TILES + t) * MMA_M], stage.w[0], step > 0);
        ptx::wgmma::commit_group();
        if (step > 0) {
            ptx::wgmma::wait_group<1>();
            release(shared.empty[before]);
        }
        before = now.stage;
    }
    ptx::wgmma::wait_group<0>();
    release(shared.empty[before]);
#pragma unroll
    for (int t = 0; t < MMA_TILES; ++t) ptx::wgmma::hold(sum[t]);
}

// Round to bf16 box by box in a ring of `y_boxes` buffers, from where one thread stores them, clipped to y.
__device__ __forceinline__ void epilogue(const float (&sum)[MMA_TILES][schedule::block_n / 2], Shared& shared,
                                         const TensorMap& y, int consumer, Tile tile) {
    const bool storing = threadIdx.x % WARPGROUP == 0;
#pragma unroll
    for (int b = 0; b < MMA_TILES * BOXES; ++b) {
        Box& box = shared.y[consumer][b % schedule::y_boxes];
        if (storing) ptx::bulk::wait_group_read<schedule::y_boxes - 1>();  // the buffer's last store has read it
        ptx::barrier::sync<WARPGROUP>(1 + consumer);
        round_to(box, &sum[b / BOXES][b % BOXES * BOX_REGISTERS]);
        ptx::fence::proxy_async_shared();
        ptx::barrier::sync<WARPGROUP>(1 + consumer);
        if (storing) {
            ptx::tma::store_2d(y, box, tile.column + b % BOXES * schedule::block_k,
                               tile.row + (consumer * MMA_TILES + b / BOXES) * MMA_M);
            ptx::bulk::commit_group();
        }
    }
}

__device__ __forceinline__ void consumer(Shared& shared, const TensorMap& y, int consumer, Walk walk, int steps) {
    float sum[MMA_TILES][schedule::block_n / 2] = {};
    Position now;
    for (Tile tile; walk.next(tile);) {
        accumulate(sum, shared, consumer, steps, now);
        epilogue(sum, shared, y, consumer, tile);
    }
    if (threadIdx.x % WARPGROUP == 0) ptx::bulk::wait_group_read<0>();  // shared memory must outlive the stores' reads
}

// Barriers are initialised before any CTA of the cluster arrives on them, and live until all have.
__device__ __forceinline__ void sync_cluster() {
    if constexpr (schedule::cluster == 1) {
        __syncthreads();
    } else {
        ptx::cluster::arrive();
        ptx::cluster::wait();
    }
}

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    gemm_warp_specialized(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                          const __grid_constant__ TensorMap y_map, const bf16*, const bf16*, bf16*, int m, int n,
                          int k) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned<Shared>(dynamic);
    const int steps = tiles_of(k, schedule::block_k);
    const int warpgroup = threadIdx.x / WARPGROUP;

    if (threadIdx.x == 0) {
        ptx::tma::prefetch(x_map);
        ptx::tma::prefetch(w_map);
        ptx::tma::prefetch(y_map);
        for (int stage = 0; stage < schedule::stages; ++stage) {
            ptx::mbarrier::init(shared.full[stage], 1);
            ptx::mbarrier::init(shared.empty[stage], schedule::cluster * CONSUMERS * WARPGROUP / WARP);
        }
        ptx::fence::mbarrier_init();
    }
    sync_cluster();

    if (warpgroup == 0) {
        ptx::setmaxnreg::dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) producer(shared, x_map, w_map, Walk(m, n), steps);
    } else {
        ptx::setmaxnreg::inc<CONSUMER_REGISTERS>();
        consumer(shared, y_map, warpgroup - 1, Walk(m, n), steps);
    }
    if constexpr (schedule::cluster > 1) {
        __syncwarp();
        sync_cluster();
    }
}
