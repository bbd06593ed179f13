// gemm_pingpong: y[m, n] = x[m, k] @ w[n, k].T, where one consumer multiplies while the other rounds and stores.
//
// Idea: the two consumers take whole tiles in turn. The tensor cores go on with the next tile while the last one leaves,
// which pays where k is short and a tile's way out is a large part of its time. The ring needs no change: the producer
// fills it tile by tile, and a consumer skips the steps of the other's tiles.
// Adds to gemm_cluster: overlap of a tile's way out with the next tile's mma.
//
//   producer    | tile 0: fill fill | tile 1: fill fill | tile 2: fill fill | ...
//   consumer 0      | tile 0: mma mma | round, store     | tile 2: mma mma | ...
//   consumer 1                        | tile 1: mma mma  | round, store     | ...
//
// Bytes expected through TMA: as gemm_cluster, for its own smaller tiles.
#include "lab/kernels/gemm/_epilogue.cuh"
#include "ptx/cluster.cuh"
#include "ptx/setmaxnreg.cuh"

constexpr int CONSUMERS = 2;
constexpr int MMA_TILES = schedule::block_m / MMA_M;              // of 64 rows, in a tile
constexpr int W_PART = box::w_map::rows;                          // rows of each half of w that this CTA loads
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

struct Stage {
    Element x[schedule::block_m][BLOCK_K];
    Element w[schedule::block_n][BLOCK_K];
};

struct alignas(ALIGNMENT) Shared {
    Stage ring[schedule::stages];
    Box y[CONSUMERS][BUFFERS];
    uint64_t full[schedule::stages];   // one arrival, and the bytes of the stage
    uint64_t empty[schedule::stages];  // one arrival from every warp of a consumer in each CTA of the cluster
};

static_assert(sizeof(Stage) == schedule::stage_bytes, "what a full barrier expects");
static_assert(sizeof(Shared) + ALIGNMENT == schedule::shared_bytes, "what the launch asks for");
static_assert(schedule::threads == (1 + CONSUMERS) * WARPGROUP, "a producer and two consumers");
static_assert(W_PART * schedule::cluster == TILE_COLUMNS, "the CTAs of a cluster load all rows of w together");
static_assert(PRODUCER_REGISTERS + CONSUMERS * CONSUMER_REGISTERS <= (1 + CONSUMERS) * 168, "168 a thread at launch");

// One thread keeps the ring full: its own rows of x, and its share of w in every CTA of the cluster.
__device__ __forceinline__ void producer(Shared& shared, const TensorMap& x, const TensorMap& w, Walk walk, int rank,
                                         int columns, int steps) {
    Position at;
    for (Tile tile; walk.next(tile);) {
        for (int step = 0; step < steps; ++step, at.advance()) {
            Stage& stage = shared.ring[at.stage];
            uint64_t& full = shared.full[at.stage];
            const int k = step * BLOCK_K;
            ptx::mbarrier::wait(shared.empty[at.stage], at.parity ^ 1);  // on the first lap every stage is empty
            ptx::mbarrier::arrive_expect_tx(full, schedule::stage_bytes);
            ptx::tma::load_2d(stage.x, x, k, tile.row + rank * schedule::block_m, full);
#pragma unroll
            for (int half = 0; half < W_HALVES; ++half) {
                Element* to = stage.w[half * TILE_COLUMNS + rank * W_PART];
                const int row = half * columns + tile.column + rank * W_PART;
                if constexpr (schedule::cluster == 1)
                    ptx::tma::load_2d(to, w, k, row, full);
                else
                    ptx::tma::load_2d_multicast(to, w, k, row, full, (1 << schedule::cluster) - 1);
            }
        }
    }
}

__device__ __forceinline__ void consumer(Shared& shared, const TensorMap& y, const Epilogue& epilogue, int consumer,
                                         Walk walk, int rank, int steps) {
    float sum[MMA_TILES][schedule::block_n / 2] = {};
    const auto release = [&](int stage) {  // to the producer of every CTA that writes to it
        const int lane = threadIdx.x % WARP;
        if constexpr (schedule::cluster == 1) {
            if (lane == 0) ptx::mbarrier::arrive(shared.empty[stage]);
        } else {
            if (lane < schedule::cluster) ptx::mbarrier::arrive_cluster(shared.empty[stage], lane);
        }
    };
    Position now;
    int next = 0, turn = 0;
    for (Tile tile; walk.next(tile); turn ^= 1) {
        if (turn != consumer) {
            now.skip(steps);
            continue;
        }
        accumulate(sum, shared, 0, steps, now, release);
        tile.row += rank * schedule::block_m;
        store(sum, shared.y[consumer], next, y, epilogue, 1 + consumer, tile);
    }
    finish_stores();
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
    gemm_pingpong(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                 const __grid_constant__ TensorMap y_map, const Element*, const Element*, Output*,
                 const Residual* residual, const float* x_scale, const float* w_scale, const float* y_scale, int m,
                 int n, int k) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned<Shared>(dynamic);
    const int rank = schedule::cluster == 1 ? 0 : int(ptx::cluster::rank());
    const int columns = n / W_HALVES, steps = tiles_of(k, BLOCK_K), warpgroup = threadIdx.x / WARPGROUP;
    constexpr int tall = schedule::cluster * schedule::block_m;
    const Walk walk{tiles_of(m, tall), tiles_of(columns, TILE_COLUMNS), tall, TILE_COLUMNS,
                    int(blockIdx.x) / schedule::cluster, int(gridDim.x) / schedule::cluster};

    if (threadIdx.x == 0) {
        ptx::tma::prefetch(x_map);
        ptx::tma::prefetch(w_map);
        ptx::tma::prefetch(y_map);
        for (int stage = 0; stage < schedule::stages; ++stage) {
            ptx::mbarrier::init(shared.full[stage], 1);
            ptx::mbarrier::init(shared.empty[stage], schedule::cluster * WARPGROUP / WARP);
        }
        ptx::fence::mbarrier_init();
    }
    sync_cluster();

    if (warpgroup == 0) {
        ptx::setmaxnreg::dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) producer(shared, x_map, w_map, walk, rank, columns, steps);
    } else {
        ptx::setmaxnreg::inc<CONSUMER_REGISTERS>();
        const Epilogue epilogue(residual, x_scale, w_scale, y_scale, m, columns);
        consumer(shared, y_map, epilogue, warpgroup - 1, walk, rank, steps);
    }
    if constexpr (schedule::cluster > 1) {
        __syncwarp();
        sync_cluster();
    }
}
