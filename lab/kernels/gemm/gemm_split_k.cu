// gemm_split_k: y[m, n] = x[m, k] @ w[n, k].T for few rows: a cluster of CTAs shares the k-steps of one tile.
//
// Idea: with m from 64 to 1024 there are fewer tiles than SMs, and an idle SM asks HBM for nothing. So `split_k` CTAs,
// a cluster, take one tile, each a contiguous share of its k-steps, and sum what they have in the end. Each owns a part
// of the tile's columns: a thread sends its accumulators of the other parts straight from registers to the thread of
// the same index in the CTA that owns them, where an mbarrier counts the bytes. No memory fence and no barrier of the
// cluster stands between the last mma and the sum; the order of the sum is fixed, so the result is always the same.
// Adds to gemm_warp_specialized: split k, a reduction through distributed shared memory, launches that overlap: while
// one ends, the next already brings the first rows of w to L2.
//
// Warp roles: warpgroup g owns rows 64 g .. 64 g + 63 of the tile; one more warp loads.
//
//   CTA 0   steps 0 .. 15    | send columns 32 .. 63 | sum and store columns  0 .. 31          block_n = 64
//   CTA 1   steps 16 .. 31   | send columns  0 .. 31 | sum and store columns 32 .. 63          split_k = 2
//
// Where m is below the tile's rows, boxes of x have m rows, and what lies behind them in the ring is zero from the start:
// a box's rows beyond x would cost TMA as much time as others.
//
// Bytes expected through TMA: as gemm_wgmma, of x no rows beyond m but in the last of several tiles; between the CTAs of a cluster, (split_k - 1) tiles in float32.
#include "lab/kernels/gemm/wgmma_epilogue.cuh"
#include "lab/kernels/gemm/split_reduce.cuh"
#include "ptx/cluster.cuh"
#include "ptx/griddepcontrol.cuh"

constexpr int SPLIT = schedule::split_k;
constexpr int CONSUMERS = schedule::block_m / MMA_M;
constexpr int PRODUCER = CONSUMERS * WARPGROUP;  // the thread that loads; those before it multiply
constexpr int PART = schedule::block_n / SPLIT;  // columns of y that each CTA sums and stores
constexpr int PART_BOXES = PART / BOX_COLUMNS;
constexpr int PART_REGISTERS = PART / 2;  // of a consumer's thread
constexpr int AHEAD = 1 + 255 / schedule::block_n;  // k-steps: 32 KB of w; of all CTAs 4 MB, a microsecond of HBM

struct alignas(ALIGNMENT) Shared {
    union {
        Stage ring[schedule::stages];
        Box y[CONSUMERS][PART_BOXES];  // after the last k-step
    };
    uint64_t full[schedule::stages];   // one arrival, and the bytes of the stage
    uint64_t empty[schedule::stages];  // one arrival from every consumer warp
    uint64_t arrived;                  // one arrival, and the bytes of all inboxes
};

using Inbox = InboxOf<PART_REGISTERS, PRODUCER>;

static_assert(sizeof(Shared) + (SPLIT - 1) * sizeof(Inbox) + ALIGNMENT == schedule::shared_bytes, "as launched");
static_assert(schedule::threads == PRODUCER + WARP, "a warpgroup for every 64 rows, and a warp that loads");
static_assert(PART % BOX_COLUMNS == 0, "a CTA's columns of y are whole boxes");

// One thread keeps the ring full; boxes of x have `rows` rows. While the launch before still runs, it brings the first rows of w to L2, no further:
// w may be that launch's result, as x may be, and only L2 would see it written.
__device__ __forceinline__ void producer(Shared& shared, const TensorMap& x, const TensorMap& w, Tile tile, int rows,
                                         int first, int end) {
#pragma unroll 1
    for (int step = first; step < min(first + AHEAD, end); ++step)
        ptx::tma::prefetch_2d(w, step * BLOCK_K, tile.column);
    ptx::griddepcontrol::wait();  // until the launch before has written what this one reads
    const int stage_bytes = schedule::stage_bytes - (schedule::block_m - rows) * schedule::step_bytes;
    Position at;
    for (int step = first; step < end; ++step, at.advance()) {
        Stage& stage = shared.ring[at.stage];
        uint64_t& full = shared.full[at.stage];
        ptx::mbarrier::wait(shared.empty[at.stage], at.parity ^ 1);  // on the first lap every stage is empty
        ptx::mbarrier::arrive_expect_tx(full, stage_bytes);
        ptx::tma::load_2d(stage.w, w, step * BLOCK_K, tile.column, full);
        ptx::tma::load_2d(stage.x, x, step * BLOCK_K, tile.row, full);
    }
}

// Round this CTA's columns in the place of the ring, from where one thread of a warpgroup stores them, clipped to y.
__device__ __forceinline__ void store(const float* own, Shared& shared, const TensorMap& y, int m, int n, int row,
                                      int column) {
    const int consumer = threadIdx.x / WARPGROUP;
    const Epilogue epilogue(nullptr, nullptr, nullptr, nullptr, m, n);
    ptx::barrier::sync<PRODUCER>(1);  // no consumer reads the ring any more
#pragma unroll
    for (int b = 0; b < PART_BOXES; ++b) {
        const float* sum = own + b * BOX_REGISTERS;
        round_to(shared.y[consumer][b], sum, sum, epilogue, Addends{}, row, column + b * BOX_COLUMNS);
    }
    ptx::fence::proxy_async_shared();
    ptx::barrier::sync<WARPGROUP>(2 + consumer);
    if (threadIdx.x % WARPGROUP == 0) {
        for (int b = 0; b < PART_BOXES; ++b)
            ptx::tma::store_2d(y, shared.y[consumer][b], column + b * BOX_COLUMNS, row);
        ptx::bulk::commit_group();
    }
    finish_stores();
}

// The rows of x behind those that a box brings, in all stages: the mma reads them.
__device__ __forceinline__ void clear_x(Shared& shared, int rows) {
    const int vectors = (schedule::block_m - rows) * int(schedule::step_bytes / sizeof(Vector16));
    if (vectors == 0) return;
#pragma unroll 1
    for (int stage = 0; stage < schedule::stages; ++stage)
        for (int at = threadIdx.x; at < vectors; at += PRODUCER)
            reinterpret_cast<Vector16*>(shared.ring[stage].x[rows])[at] = {};
    ptx::fence::proxy_async_shared();
    ptx::barrier::sync<PRODUCER>(1);
}

__device__ __forceinline__ void consumer(Shared& shared, const TensorMap& y, int m, int n, Tile tile, int rows,
                                         int rank, int steps) {
    clear_x(shared, rows);
    const int first = threadIdx.x / WARPGROUP * MMA_M;
    const auto release = [&](int stage) {
        if (threadIdx.x % WARP == 0) ptx::mbarrier::arrive(shared.empty[stage]);
    };
    float sum[1][schedule::block_n / 2] = {};
    Position now;
    accumulate(sum, shared, first, steps, now, release);
    if constexpr (SPLIT == 1) {
        store(sum[0], shared, y, m, n, tile.row + first, tile.column);
    } else {
        float own[PART_REGISTERS];
        ptx::cluster::wait();  // every CTA of the cluster has started
        reduce<SPLIT>(own, sum[0], reinterpret_cast<Inbox*>(&shared + 1), shared.arrived, rank);
        store(own, shared, y, m, n, tile.row + first, tile.column + rank * PART);
    }
}

extern "C" __global__ void __launch_bounds__(schedule::threads, schedule::ctas_per_sm)
    gemm_split_k(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                 const __grid_constant__ TensorMap y_map, const Element*, const Element*, Output*, int m, int n,
                 int k) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned<Shared>(dynamic);
    const int rank = blockIdx.x % SPLIT, steps = tiles_of(k, BLOCK_K);
    const int first = rank * steps / SPLIT, end = (rank + 1) * steps / SPLIT;  // of this CTA's k-steps
    const int rows = min(schedule::block_m, m);  // of a box of x
    const Tile tile = tile_at(blockIdx.x / SPLIT, tiles_of(m, schedule::block_m), tiles_of(n, schedule::block_n),
                              schedule::block_m, schedule::block_n);

    if (threadIdx.x == 0) {
        ptx::mbarrier::init(shared.arrived, 1);
        init_ring(shared, x_map, w_map, y_map, PRODUCER / WARP);
        ptx::mbarrier::arrive_expect_tx(shared.arrived, (SPLIT - 1) * sizeof(Inbox));
        ptx::griddepcontrol::launch_dependents();
    }
    __syncthreads();
    if constexpr (SPLIT > 1) ptx::cluster::arrive_relaxed();  // the barriers' own fence is all that the others need

    if (threadIdx.x < PRODUCER) {
        consumer(shared, y_map, m, n, tile, rows, rank, end - first);
    } else {
        if (threadIdx.x == PRODUCER) producer(shared, x_map, w_map, tile, rows, first, end);
        __syncwarp();
        if constexpr (SPLIT > 1) ptx::cluster::wait();
    }
}
