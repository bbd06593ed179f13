// gemm_transposed: y[m, n] = x[m, k] @ w[n, k].T with rows of w as the rows of mma: tiles as high as there are tokens.
//
// Idea: a wgmma has 64 rows, and columns by eights. Where rows of w are its rows and tokens its columns, a tile has as many
// tokens as divide m best, and the waves of tiles as few as m and n allow. The CTAs of a cluster lie side by side and
// load their common tokens once, by multicast: of rows that begin anywhere in a line of 128 bytes, which TMA takes twice
// as long to bring, each asks for fewer than its products take.
// Adds to gemm_cluster: tiles of any multiple of eight tokens, three consumers, clusters along n.
//
//   registers   y^T[64 rows of w, tokens]  ->  stmatrix transposes  ->  boxes of y
//
// One thread loads, two or three warpgroups multiply, from tile to tile.
// Bytes expected through TMA: every row of tiles loads w, every column of tiles x.
#include "lab/kernels/common/cluster.cuh"
#include "lab/kernels/gemm/wgmma_mainloop.cuh"
#include "ptx/barrier.cuh"
#include "ptx/bulk.cuh"
#include "ptx/convert.cuh"
#include "ptx/setmaxnreg.cuh"
#include "ptx/stmatrix.cuh"

using Output = problem::output;

constexpr int CONSUMERS = schedule::consumers;
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = CONSUMERS == 3 ? 152 : 232;
constexpr int EIGHT = 8;  // tokens of a matrix of stmatrix
constexpr int MMA_TILES = schedule::block_n / CONSUMERS / MMA_M;  // of 64 rows of w, in each consumer
constexpr int BOXES = schedule::block_m / schedule::y_rows;
constexpr int EIGHTHS = schedule::y_rows / EIGHT;  // of a box
constexpr int Y_COLUMNS = 64;

using Sums = float[MMA_TILES][schedule::block_m / 2];
using Box = Output[schedule::y_rows][Y_COLUMNS];

struct alignas(ALIGNMENT) Shared {
    Stage ring[schedule::stages];
    Box y[CONSUMERS][schedule::y_boxes];
    uint64_t full[schedule::stages];   // one arrival, and the bytes of the stage
    uint64_t empty[schedule::stages];  // one arrival from every consumer warp of the cluster
};

static_assert(sizeof(Shared) + ALIGNMENT == schedule::shared_bytes, "what the launch asks for");
static_assert(schedule::threads == (1 + CONSUMERS) * WARPGROUP, "a producer and the consumers");
static_assert(PRODUCER_REGISTERS + CONSUMERS * CONSUMER_REGISTERS <= 512, "registers of an SM for a thread of each");

// One thread keeps the ring full: its own rows of w, and its share of x in every CTA of the cluster.
__device__ __forceinline__ void producer(Shared& shared, const TensorMap& x, const TensorMap& w, Walk walk, int rank,
                                         int steps) {
    Position at;
    for (Tile tile; walk.next(tile);) {
        for (int step = 0; step < steps; ++step, at.advance()) {
            Stage& stage = shared.ring[at.stage];
            uint64_t& full = shared.full[at.stage];
            const int k = step * BLOCK_K;
            ptx::mbarrier::wait(shared.empty[at.stage], at.parity ^ 1);  // on the first lap every stage is empty
            ptx::mbarrier::arrive_expect_tx(full, schedule::stage_bytes);
            if constexpr (schedule::cluster == 1)
                ptx::tma::load_2d(stage.x, x, k, tile.row, full);
            else if (step % schedule::cluster == rank)  // the CTAs take turns
                ptx::tma::load_2d_multicast(stage.x, x, k, tile.row, full, (1 << schedule::cluster) - 1);
            ptx::tma::load_2d(stage.w, w, k, tile.column + rank * schedule::block_n, full);
        }
    }
}

// Round y^T of 64 rows of w after the other, transposed, in rounds of boxes, from where one thread stores them, clipped to
// y. A fence and two barriers end a round: it has half of the boxes that a consumer holds, or all where these are odd or
// the whole tile.
__device__ __forceinline__ void store(const Sums& sum, Box (&buffers)[schedule::y_boxes], int& next, const TensorMap& y,
                                      int barrier, int row, int column) {
    constexpr int ALL = MMA_TILES * BOXES, HELD = schedule::y_boxes;
    constexpr int ROUND = HELD < ALL && HELD % 2 == 0 ? HELD / 2 : HELD;
    constexpr int ROUNDS = HELD / ROUND;  // that have buffers
    const int lane = threadIdx.x % WARP;
    const int chunk = threadIdx.x % WARPGROUP / WARP * 2 + lane / EIGHT % 2;  // eight rows of w
    const bool storing = threadIdx.x % WARPGROUP == 0;
#pragma unroll
    for (int first = 0; first < ALL; first += ROUND) {
        Box* boxes = &buffers[next * ROUND];
        next = next + 1 == ROUNDS ? 0 : next + 1;
        if (storing) ptx::bulk::wait_group_read<ROUNDS - 1>();  // the last stores of these buffers have read them
        ptx::barrier::sync<WARPGROUP>(barrier);
#pragma unroll
        for (int j = 0; j < min(ROUND, ALL - first) * EIGHTHS; ++j) {
            const int i = first + j / EIGHTHS, eighth = j % EIGHTHS;
            const float* four = &sum[i / BOXES][(i % BOXES * EIGHTHS + eighth) * 4];
            ptx::stmatrix::x2_transposed(&boxes[i - first][EIGHT * eighth + lane % EIGHT][(chunk ^ lane % EIGHT) * EIGHT],
                                         ptx::convert::pair<Output>(four[0], four[1]),
                                         ptx::convert::pair<Output>(four[2], four[3]));
        }
        ptx::fence::proxy_async_shared();
        ptx::barrier::sync<WARPGROUP>(barrier);
        if (storing) {
#pragma unroll
            for (int i = first; i < min(first + ROUND, ALL); ++i)
                ptx::tma::store_2d(y, boxes[i - first], column + i / BOXES * MMA_M, row + i % BOXES * schedule::y_rows);
            ptx::bulk::commit_group();
        }
    }
}

__device__ __forceinline__ void consumer(Shared& shared, const TensorMap& y, int consumer, Walk walk, int rank,
                                         int steps) {
    Sums sum = {};
    const int first = consumer * MMA_TILES * MMA_M;
    const auto free = [&](int stage) { release_cluster(shared.empty[stage]); };
    Position now;
    int next = 0;
    for (Tile tile; walk.next(tile);) {
        accumulate<true>(sum, shared, first, steps, now, free);
        store(sum, shared.y[consumer], next, y, 1 + consumer, tile.row, tile.column + rank * schedule::block_n + first);
    }
    if (threadIdx.x % WARPGROUP == 0) ptx::bulk::wait_group_read<0>();  // shared memory must outlive the reads
}

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    gemm_transposed(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                    const __grid_constant__ TensorMap y_map, const Element*, const Element*, Output*, int m, int n,
                    int k) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned<Shared>(dynamic);
    constexpr int CLUSTER = schedule::cluster, WIDE = CLUSTER * schedule::block_n;
    const int warpgroup = warpgroup_index(), rank = CLUSTER == 1 ? 0 : int(ptx::cluster::rank());
    const int steps = tiles_of(k, BLOCK_K);
    const Walk walk{tiles_of(m, schedule::block_m), tiles_of(n, WIDE), schedule::block_m, WIDE,
                    int(blockIdx.x) / CLUSTER, int(gridDim.x) / CLUSTER};

    if (threadIdx.x == 0) init_ring(shared, x_map, w_map, y_map, CLUSTER * CONSUMERS * WARPGROUP / WARP);
    sync_cluster();
    if (warpgroup == 0) {
        ptx::setmaxnreg::dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) producer(shared, x_map, w_map, walk, rank, steps);
    } else {
        ptx::setmaxnreg::inc<CONSUMER_REGISTERS>();
        consumer(shared, y_map, warpgroup - 1, walk, rank, steps);
    }
    finish();
}
