// gemm_shifted: y[m, n] = x[m, k] @ w[n, k].T where rows of w begin anywhere in a line of 128 bytes.
//
// Idea: TMA takes twice as long to bring 128 bytes of a row that lie in two lines. Eight rows are whole lines whatever
// k: each of the eight begins somewhere in a line, the next eight begin as these do. So TMA brings lines, never parts of
// them, and a k-step of a row is the end of one and the beginning of the next. ldmatrix, whose lanes give the address
// of each row's 16 bytes, reads it from there into registers, from where wgmma takes its operand A: rows of w, 64 in
// each, while tokens are its N, of any multiple of 16. x, whose rows wgmma reads from shared memory, is copied to rows
// of whole lines before, by gemm_realigned: it is small beside w.
// Adds to gemm_realigned: w is not copied, nor any line of it asked for twice; tiles as high as there are tokens.
//
//   line of    | w[8 i]:      step 0          | step 1          | ...
//   a stage    | w[8 i + 1]:  ..| step 0          | step 1          | ...
//              | w[8 i + 2]:  ....| step 0          | step 1          | ...
//
// Registers hold y^T, which stmatrix transposes. One thread loads, two warpgroups multiply, from tile to tile. The CTAs
// of a cluster lie side by side and load their common tokens once, by multicast.
// Bytes expected through TMA: every row of tiles loads w, one line more of a row than it has where it ends in one more;
// every column of tiles loads x; gemm_realigned's copy of x.
#include "lab/kernels/common/cluster.cuh"
#include "lab/kernels/gemm/wgmma_mainloop.cuh"
#include "ptx/barrier.cuh"
#include "ptx/bulk.cuh"
#include "ptx/convert.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/setmaxnreg.cuh"
#include "ptx/stmatrix.cuh"

using Output = problem::output;

constexpr int CONSUMERS = 2;
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;
constexpr int EIGHT = 8;                              // rows of w that are whole lines, or of a matrix of ldmatrix
constexpr int GROUPS = schedule::block_n / EIGHT;     // of eight rows in a tile; a stage has the first row of each first
constexpr int CHUNK = 16;                             // bytes of a row of a matrix
constexpr int CHUNKS = schedule::step_bytes / CHUNK;  // of a line
constexpr int MMA_TILES = schedule::block_n / CONSUMERS / MMA_M;  // of 64 rows of w, in each consumer
constexpr int MMA_STEPS = schedule::step_bytes / MMA_BYTES;
constexpr int AHEAD = MMA_TILES == 1 ? 2 : 1;  // mma whose fragments are loaded before they are their turn
constexpr int TURNS = 2 * AHEAD;               // fragments: as many mma may be in flight, and read theirs
constexpr int BOXES = schedule::block_m / schedule::y_rows;
constexpr int Y_COLUMNS = 64;
constexpr int X_PART = schedule::block_m / schedule::cluster;  // tokens that this CTA loads

using Sums = float[MMA_TILES][schedule::block_m / 2];
using Fragments = uint32_t[MMA_TILES][4];
using Box = Output[schedule::y_rows][Y_COLUMNS];

struct alignas(ALIGNMENT) Shared {
    Stage ring[schedule::stages];
    Box y[CONSUMERS][schedule::buffers];
    uint64_t full[schedule::stages];   // one arrival, and the bytes of the stage
    uint64_t empty[schedule::stages];  // one arrival from every consumer warp of the cluster
};

static_assert(sizeof(Shared) + ALIGNMENT == schedule::shared_bytes, "what the launch asks for");
static_assert(schedule::threads == (1 + CONSUMERS) * WARPGROUP, "a producer and two consumers");
static_assert(MMA_STEPS % TURNS == 0, "every step starts with the first fragments");
static_assert(GROUPS % 8 == 0, "rows of a group lie alike in the swizzle");
static_assert(X_PART * schedule::step_bytes % ALIGNMENT == 0, "each CTA's part of x begins a swizzle");

// One thread keeps the ring full: of w the lines of the first rows of all groups of eight, of the second, and so on;
// and its share of x in every CTA of the cluster.
__device__ __forceinline__ void producer(Shared& shared, const TensorMap& x, const TensorMap& w, Walk walk, int rank,
                                         int k, int lines) {
    Position at;
    for (Tile tile; walk.next(tile);) {
        for (int line = 0; line < lines; ++line, at.advance()) {
            Stage& stage = shared.ring[at.stage];
            uint64_t& full = shared.full[at.stage];
            ptx::mbarrier::wait(shared.empty[at.stage], at.parity ^ 1);  // on the first lap every stage is empty
            ptx::mbarrier::arrive_expect_tx(full, schedule::stage_bytes);
            Element* part = stage.x[rank * X_PART];
            const int token = tile.row + rank * X_PART;
            if constexpr (schedule::cluster == 1)
                ptx::tma::load_2d(part, x, line * BLOCK_K, token, full);
            else
                ptx::tma::load_2d_multicast(part, x, line * BLOCK_K, token, full, (1 << schedule::cluster) - 1);
#pragma unroll
            for (int row = 0; row < EIGHT; ++row) {
                const int first = row * k / BLOCK_K;  // line of the eight rows in which this one begins
                const int group = (tile.column + rank * schedule::block_n) / EIGHT;
                ptx::tma::load_2d(stage.w[row * GROUPS], w, (first + line) * BLOCK_K, group, full);
            }
        }
    }
}

// What a lane reads of the lines of a stage and of the next one.
struct Lines {
    int k, lines;
    int row;        // bytes from a stage's first line to that of this lane's row
    int swizzle;    // of its chunks
    int first;      // chunk of the line in which this lane's part of a k-step begins
    int left = 0;   // chunks from this k-step on
    uint32_t now = 0, next = 0;  // shared addresses of w in two stages
    Position ahead;              // of the second

    // Of 16 rows for each warp: the lanes give the eight upper and the eight lower ones, then the same 16 bytes on.
    __device__ __forceinline__ Lines(int consumer, int k, int lines) : k(k), lines(lines) {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x % WARPGROUP / WARP;
        const int group = consumer * MMA_TILES * MMA_M / EIGHT + warp * 2 + lane / EIGHT % 2;
        row = (lane % EIGHT * GROUPS + group) * schedule::step_bytes;
        swizzle = group % 8;
        first = lane % EIGHT * (k / EIGHT) % CHUNKS + lane / 16;
    }

    // On to k-step `step`, as soon as both stages are there.
    __device__ __forceinline__ void advance(Shared& shared, int step) {
        if (step == 0) ptx::mbarrier::wait(shared.full[ahead.stage], ahead.parity);
        now = next = ptx::address::shared(shared.ring[ahead.stage].w);
        ahead.advance();
        if (step + 1 < lines) {
            ptx::mbarrier::wait(shared.full[ahead.stage], ahead.parity);
            next = ptx::address::shared(shared.ring[ahead.stage].w);
        }
        left = k / EIGHT - step * CHUNKS;
    }

    // The fragments of 32 bytes of a k-step; zeros beyond k, where the next row of w begins.
    __device__ __forceinline__ void load(Fragments& a, int mma) const {
        const int chunk = first + 2 * mma;
        const uint32_t from = (chunk < CHUNKS ? now : next) + row + (chunk % CHUNKS ^ swizzle) * CHUNK;
#pragma unroll
        for (int t = 0; t < MMA_TILES; ++t) {
            ptx::ldmatrix::x4(a[t], from + t * (MMA_M / EIGHT) * schedule::step_bytes);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (2 * mma + i / 2 >= left) a[t][i] = 0;
        }
        ptx::wgmma::hold(a);
    }
};

// Every k-step of a tile. Fragments are loaded while mma that were issued before are under way.
__device__ __forceinline__ void accumulate(Sums& sum, Shared& shared, Lines& lines, int steps, Position& now) {
    Fragments a[TURNS];
    int before = 0, step = 0;
    lines.advance(shared, 0);
#pragma unroll
    for (int mma = 0; mma < AHEAD; ++mma) lines.load(a[mma], mma);
    do {  // one step at least
        const uint64_t x = ptx::wgmma::descriptor_k_major_128b(shared.ring[now.stage].x);
        const bool more = step + 1 < steps;
#pragma unroll
        for (int mma = 0; mma < MMA_STEPS; ++mma) {
            ptx::wgmma::fence();
#pragma unroll
            for (int t = 0; t < MMA_TILES; ++t)
                ptx::wgmma::mma<Element>(sum[t], a[mma % TURNS][t], ptx::wgmma::advance(x, mma * MMA_BYTES),
                                         step > 0 || mma > 0);
            ptx::wgmma::commit_group();
            const bool same = mma + AHEAD < MMA_STEPS;  // step, of the fragments to be loaded
            if (mma + AHEAD == MMA_STEPS && more) lines.advance(shared, step + 1);
            ptx::wgmma::wait_group<AHEAD>();
            if (mma == AHEAD - 1 && step > 0) release_cluster(shared.empty[before]);
            if (same || more) lines.load(a[(mma + AHEAD) % TURNS], (mma + AHEAD) % MMA_STEPS);
        }
        before = now.stage;
        now.advance();
    } while (++step < steps);
    ptx::wgmma::wait_group<0>();
#pragma unroll
    for (int t = 0; t < MMA_TILES; ++t) ptx::wgmma::hold(sum[t]);
    release_cluster(shared.empty[before]);
    if (lines.lines > steps) {
        release_cluster(shared.empty[now.stage]);
        now.advance();
    }
}

// Round y^T of 64 rows of w after the other, transposed, box by box, from where one thread stores it, clipped to y.
__device__ __forceinline__ void store(const Sums& sum, Box (&buffers)[schedule::buffers], int& next, const TensorMap& y,
                                      int barrier, int row, int column) {
    const int lane = threadIdx.x % WARP;
    const int chunk = threadIdx.x % WARPGROUP / WARP * 2 + lane / EIGHT % 2;  // eight rows of w
    const bool storing = threadIdx.x % WARPGROUP == 0;
#pragma unroll
    for (int i = 0; i < MMA_TILES * BOXES; ++i) {
        Box& box = buffers[next];
        next = next + 1 == schedule::buffers ? 0 : next + 1;
        if (storing) ptx::bulk::wait_group_read<schedule::buffers - 1>();  // the buffer's last store has read it
        ptx::barrier::sync<WARPGROUP>(barrier);
#pragma unroll
        for (int j = 0; j < schedule::y_rows / EIGHT; ++j) {
            const float* four = &sum[i / BOXES][(i % BOXES * schedule::y_rows / EIGHT + j) * 4];
            ptx::stmatrix::x2_transposed(&box[EIGHT * j + lane % EIGHT][(chunk ^ lane % EIGHT) * EIGHT],
                                         ptx::convert::pair<Output>(four[0], four[1]),
                                         ptx::convert::pair<Output>(four[2], four[3]));
        }
        ptx::fence::proxy_async_shared();
        ptx::barrier::sync<WARPGROUP>(barrier);
        if (storing) {
            ptx::tma::store_2d(y, box, column + i / BOXES * MMA_M, row + i % BOXES * schedule::y_rows);
            ptx::bulk::commit_group();
        }
    }
}

__device__ __forceinline__ void consumer(Shared& shared, const TensorMap& y, int consumer, Walk walk, int rank, int k,
                                         int lines) {
    Sums sum = {};
    Lines of_w(consumer, k, lines);
    Position now;
    int next = 0;
    for (Tile tile; walk.next(tile);) {
        of_w.ahead = now;
        accumulate(sum, shared, of_w, tiles_of(k, BLOCK_K), now);
        const int column = tile.column + rank * schedule::block_n + consumer * MMA_TILES * MMA_M;
        store(sum, shared.y[consumer], next, y, 1 + consumer, tile.row, column);
    }
    if (threadIdx.x % WARPGROUP == 0) ptx::bulk::wait_group_read<0>();  // shared memory must outlive the reads
}

// x has whole lines; `lines` is the most that a row of w lies in.
extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    gemm_shifted(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                 const __grid_constant__ TensorMap y_map, const Element*, const Element*, Output*, int m, int n, int k,
                 int lines) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned<Shared>(dynamic);
    constexpr int CLUSTER = schedule::cluster, WIDE = CLUSTER * schedule::block_n;
    const int warpgroup = threadIdx.x / WARPGROUP, rank = CLUSTER == 1 ? 0 : int(ptx::cluster::rank());
    const Walk walk{tiles_of(m, schedule::block_m), tiles_of(n, WIDE), schedule::block_m, WIDE,
                    int(blockIdx.x) / CLUSTER, int(gridDim.x) / CLUSTER};

    if (threadIdx.x == 0) init_ring(shared, x_map, w_map, y_map, CLUSTER * CONSUMERS * WARPGROUP / WARP);
    sync_cluster();
    if (warpgroup == 0) {
        ptx::setmaxnreg::dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) producer(shared, x_map, w_map, walk, rank, k, lines);
    } else {
        ptx::setmaxnreg::inc<CONSUMER_REGISTERS>();
        consumer(shared, y_map, warpgroup - 1, walk, rank, k, lines);
    }
    finish();
}
