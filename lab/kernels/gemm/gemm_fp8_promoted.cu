// gemm_fp8_promoted: y[m, n] = x[m, k] @ w[n, k].T of fp8, summed in float32.
//
// Idea: the tensor cores keep some 13 bits of a sum of fp8 products, too few for a long k. So each k-step of 128 starts
// a new sum, which the consumers then add to float32 registers, while the tensor cores must have other work. Either each
// consumer has two partial sums, and they fill one while the other is added; or it has one, and the consumers multiply
// in turn, so that they never add at the same time. The price is registers: a partial sum is of 64 rows and as many
// columns as there is room for. Such parts of a consumer's tile follow one another, step by step.
// Adds to gemm_cluster: promotion.
//
//   two partial sums   0 | mma part 0 | add        | mma part 2 | add        | ...
//   of a consumer      1              | mma part 1 | add        | mma part 3 | ...
//
//   two consumers      0 | mma part 0 | add        | mma part 1 | add        | ...
//   in turn            1              | mma part 0 | add        | mma part 1 | ...
//
// Bytes expected through TMA: as gemm_cluster.
#include "lab/kernels/gemm/cluster_ring.cuh"

constexpr int MMA_TILES = schedule::block_m / CONSUMERS / MMA_M;    // of 64 rows, in each consumer
constexpr int ACROSS = schedule::block_n / schedule::part_columns;  // parts side by side
constexpr int PARTS = MMA_TILES * ACROSS;                           // of a consumer's tile
constexpr int REGISTERS = schedule::part_columns / 2;               // of a part
constexpr int TURN = 1 + CONSUMERS;  // a named barrier of each consumer from here on; before are the epilogue's

using Sums = float[PARTS][REGISTERS];

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

    __device__ __forceinline__ void add_to(float (&total)[REGISTERS]) const {
#pragma unroll
        for (int i = 0; i < REGISTERS; ++i) total[i] += sum[i];
    }
};

// Every k-step of a consumer's half of a tile. Each part is queued before the one before it is waited for.
__device__ __forceinline__ void accumulate(Sums& sums, Partial (&partial)[2], Shared& shared, int consumer,
                                           int steps, Position& now) {
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
        partial[turn % 2].add_to(sums[turn % PARTS]);
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
                                           int steps, Position& now) {
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
            partial[0].add_to(sums[part]);
        }
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
        accumulate(sums, partial, shared, consumer, steps, now);
        tile.row += rank * schedule::block_m + consumer * MMA_TILES * MMA_M;
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
