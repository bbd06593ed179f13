// gemm_fp8_promoted: y[m, n] = x[m, k] @ w[n, k].T of fp8, summed in float32.
//
// Idea: the tensor cores keep some 13 bits of a sum of fp8 products, too few for a long k. So each k-step of 128 starts
// a new sum, which the consumers then add to float32 registers, while the tensor cores must have other work. Either each
// consumer has two partial sums, and they fill one while the other is added; or it has one, and the consumers multiply
// in turn, so that they never add at the same time. The price is registers: a partial sum is of 64 rows and as many
// columns as there is room for. Such parts of a consumer's tile follow one another, step by step.
// Adds to gemm_cluster: promotion; scales of blocks, with which a step's sum is multiplied as it is added.
//
//   two partial sums   0 | mma part 0 | add        | mma part 2 | add        | ...
//   of a consumer      1              | mma part 1 | add        | mma part 3 | ...
//
//   two consumers      0 | mma part 0 | add        | mma part 1 | add        | ...
//   in turn            1              | mma part 0 | add        | mma part 1 | ...
//
// Bytes expected through TMA: as gemm_cluster.
#include "lab/kernels/gemm/cluster_ring.cuh"
#include "ptx/load.cuh"

constexpr int MMA_TILES = schedule::block_m / CONSUMERS / MMA_M;    // of 64 rows, in each consumer
constexpr int ACROSS = schedule::block_n / schedule::part_columns;  // parts side by side
constexpr int PARTS = MMA_TILES * ACROSS;                           // of a consumer's tile
constexpr int REGISTERS = schedule::part_columns / 2;               // of a part
constexpr int BLOCK = 128;                                          // rows of w, and along k, that share a scale
constexpr int TURN = 1 + CONSUMERS;  // a named barrier of each consumer from here on; before are the epilogue's

static_assert(!problem::block_scales || BLOCK % schedule::part_columns == 0 && schedule::step_bytes == BLOCK,
              "a part of a step has one scale of w");

using Sums = float[PARTS][REGISTERS];

// The scales of a thread's rows and of a tile's parts in this k-step. The four lanes that have the same rows load those of
// four steps at once, four steps ahead, and hand them to each other.
struct BlockScales {
    static constexpr int LOADED = 4;  // steps, and lanes
    struct Steps {
        float x[MMA_TILES][2], w[ACROSS];  // of the upper and the lower row of each 64, of each part's columns
    };
    const float *x_scale, *w_scale;  // of this thread's first row, of the tile's first block
    int blocks, rows, columns;       // along k, and from this thread's first row and the tile's first column on
    int column;                      // the tile's first in its block
    int at;                          // this lane's step among those to be loaded
    int step = 0;
    Steps now, next;  // one step's of the four in each lane

    // Of this thread's consumer's part of a tile, which begins at `tile`; zeros beyond y.
    __device__ __forceinline__ BlockScales(const Epilogue& epilogue, int steps, Tile tile) : blocks(steps) {
        if constexpr (problem::block_scales) {
            const int row = tile.row + threadIdx.x % WARPGROUP / WARP * 16 + threadIdx.x % WARP / 4;
            rows = epilogue.m - row;
            columns = epilogue.columns - tile.column;
            x_scale = epilogue.x_scale + int64_t(row) * blocks;
            w_scale = epilogue.w_scale + int64_t(tile.column / BLOCK) * blocks;
            column = tile.column % BLOCK;
            at = threadIdx.x % LOADED;
            fetch();
            now = next;
            fetch();
        }
    }

    __device__ __forceinline__ void fetch() {
        const bool more = at < blocks;
#pragma unroll
        for (int i = 0; i < 2 * MMA_TILES; ++i) {
            const int row = i / 2 * MMA_M + i % 2 * 8;
            next.x[i / 2][i % 2] = read(x_scale + int64_t(row) * blocks + at, more && row < rows);
        }
#pragma unroll
        for (int part = 0; part < ACROSS; ++part) {
            const int first = part * schedule::part_columns;
            next.w[part] = read(w_scale + int64_t((column + first) / BLOCK) * blocks + at, more && first < columns);
        }
        at += LOADED;
    }

    // On to the next step.
    __device__ __forceinline__ void advance() {
        if constexpr (problem::block_scales)
            if (++step % LOADED == 0) {
                now = next;
                fetch();
            }
    }

    // This step's of what each of four lanes has one step's.
    __device__ __forceinline__ float of(float loaded) const {
        return __shfl_sync(0xffffffffu, loaded, step % LOADED, LOADED);
    }

    static __device__ __forceinline__ float read(const float* scale, bool inside) {
        return __uint_as_float(ptx::load::cached_4_if(scale, inside));
    }
};

// A partial sum: the tensor cores fill it with a part of a k-step, then it is added.
struct Partial {
    float sum[REGISTERS] = {};

    // Queues bytes [from, to) of each row of a stage, as a group.
    template <int from, int to>
    __device__ __forceinline__ void multiply(const Stage& stage, int consumer, int part) {
        const auto* x = stage.x[(consumer * MMA_TILES + part / ACROSS) * MMA_M];
        const auto* w = stage.w[part % ACROSS * schedule::part_columns];
        const uint64_t a = ptx::wgmma::descriptor_k_major_128b(x), b = ptx::wgmma::descriptor_k_major_128b(w);
#pragma unroll
        for (int at = from; at < to; at += MMA_BYTES)
            ptx::wgmma::mma<Element>(sum, ptx::wgmma::advance(a, at), ptx::wgmma::advance(b, at), at > 0);
        ptx::wgmma::commit_group();
    }

    // Waits until at most `pending` later groups are in flight.
    template <int pending>
    __device__ __forceinline__ void wait() {
        ptx::wgmma::wait_group<pending>();
        ptx::wgmma::hold(sum);
    }

    // Adds it to those of part `part`, times the scales of its blocks.
    __device__ __forceinline__ void add_to(float (&total)[REGISTERS], const BlockScales& scales, int part) const {
        if constexpr (problem::block_scales) {
            const auto& x = scales.now.x[part / ACROSS];
            const float w = scales.of(scales.now.w[part % ACROSS]);
            const float rows[2] = {w * scales.of(x[0]), w * scales.of(x[1])};
#pragma unroll
            for (int i = 0; i < REGISTERS; ++i) total[i] = fmaf(sum[i], rows[i / 2 % 2], total[i]);
        } else {
#pragma unroll
            for (int i = 0; i < REGISTERS; ++i) total[i] += sum[i];
        }
    }
};

// Every k-step of a consumer's half of a tile. Each part is queued before the one before it is waited for.
__device__ __forceinline__ void accumulate(Sums& sums, Partial (&partial)[2], Shared& shared, int consumer,
                                           int steps, Position& now, BlockScales& scales) {
    constexpr int ROUND = PARTS == 1 ? 2 : PARTS;  // parts, at whose end the partial sums and the parts start over
    constexpr int STEPS = ROUND / PARTS;           // of a round
    static_assert(ROUND % 2 == 0, "two partial sums take turns");
    const auto start = [&](int turn) {
        if (turn % PARTS == 0) ptx::mbarrier::wait(shared.full[now.stage], now.parity);
        ptx::wgmma::fence();
        partial[turn % 2].multiply<0, schedule::step_bytes>(shared.ring[now.stage], consumer, turn % PARTS);
    };
    const auto finish = [&](int turn, int stage) {
        if (turn % PARTS == PARTS - 1) release_cluster(shared.empty[stage]);
        partial[turn % 2].add_to(sums[turn % PARTS], scales, turn % PARTS);
        if (turn % PARTS == PARTS - 1) scales.advance();
    };
    const auto next = [&](int turn) {
        const int stage = now.stage;
        if (turn % PARTS == PARTS - 1) now.advance();
        start(turn + 1);
        partial[turn % 2].wait<1>();
        finish(turn, stage);
    };
    const auto end = [&](int turn) {
        partial[turn % 2].wait<0>();
        finish(turn, now.stage);
        now.advance();
    };
    start(0);
    for (; steps > STEPS; steps -= STEPS) {
#pragma unroll
        for (int turn = 0; turn < ROUND; ++turn) next(turn);
    }
    if (steps == STEPS) {
#pragma unroll
        for (int turn = 0; turn < ROUND - 1; ++turn) next(turn);
        end(ROUND - 1);
    } else {  // half a round; where a round is a step the branch is idle, but without it ptxas serialises wgmma
        end(0);
    }
}

// The same with one partial sum, in turns. The other consumer's begins before this one's part ends, so that its mma are
// queued by then.
__device__ __forceinline__ void accumulate(Sums& sums, Partial (&partial)[1], Shared& shared, int consumer,
                                           int steps, Position& now, BlockScales& scales) {
    constexpr int HAND_OVER = schedule::hand_over * schedule::step_bytes / 4;
    for (; steps > 0; --steps, now.advance()) {
        ptx::mbarrier::wait(shared.full[now.stage], now.parity);
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            ptx::barrier::sync<CONSUMERS * WARPGROUP>(TURN + consumer);
            ptx::wgmma::fence();
            partial[0].multiply<0, HAND_OVER>(shared.ring[now.stage], consumer, part);
            partial[0].multiply<HAND_OVER, schedule::step_bytes>(shared.ring[now.stage], consumer, part);
            ptx::wgmma::wait_group<1>();
            ptx::barrier::arrive<CONSUMERS * WARPGROUP>(TURN + 1 - consumer);
            partial[0].wait<0>();
            if (part == PARTS - 1) release_cluster(shared.empty[now.stage]);
            partial[0].add_to(sums[part], scales, part);
        }
        scales.advance();
    }
}

__device__ __forceinline__ void consumer(Shared& shared, const TensorMap& y, const Epilogue& epilogue, int consumer,
                                         Walk walk, int rank, int steps) {
    constexpr bool IN_TURN = schedule::partials == 1;
    using Rows = const float[MMA_TILES][ACROSS * REGISTERS];
    Sums sums;
    Partial partial[schedule::partials];
    Position now;
    int next = 0;
    if (IN_TURN && consumer == 1) ptx::barrier::arrive<CONSUMERS * WARPGROUP>(TURN);  // the first turn is the other's
    for (Tile tile; walk.next(tile);) {
#pragma unroll
        for (int i = 0; i < PARTS * REGISTERS; ++i) sums[i / REGISTERS][i % REGISTERS] = 0;
        tile.row += rank * schedule::block_m + consumer * MMA_TILES * MMA_M;
        BlockScales scales(epilogue, steps, tile);
        accumulate(sums, partial, shared, consumer, steps, now, scales);
        store(reinterpret_cast<Rows&>(sums), shared.y[consumer], next, y, epilogue, 1 + consumer, tile);
    }
    if (IN_TURN && consumer == 0) ptx::barrier::sync<CONSUMERS * WARPGROUP>(TURN);  // the turn after the last
    finish_stores();
}

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    gemm_fp8_promoted(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                      const __grid_constant__ TensorMap y_map, const Element*, const Element*, Output*,
                      const Residual* residual, const float* x_scale, const float* w_scale, const float* y_scale, int m,
                      int n, int k) {
    run_cluster<CONSUMERS>(x_map, w_map, y_map, {residual, x_scale, w_scale, y_scale}, m, n, k, consumer);
}
