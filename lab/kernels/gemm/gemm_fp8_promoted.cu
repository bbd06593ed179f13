// gemm_fp8_promoted: y[m, n] = x[m, k] @ w[n, k].T of fp8, summed in float32.
//
// Idea: the tensor cores keep some 13 bits of a sum of fp8 products, too few for a long k. So each k-step of 128 starts
// a new sum, which the consumers then add to float32 registers. Two such partial sums a consumer keep the tensor cores
// queued: while one is added, they fill the other. The price is registers, so a partial sum is of 64 rows and as many
// columns as leave room for two: a part of a consumer's tile. Parts take their turns step by step.
// Adds to gemm_cluster: promotion.
//
//   partial 0   | mma part 0 | add        | mma part 2 | add        | ...
//   partial 1                | mma part 1 | add        | mma part 3 | ...
//
// Bytes expected through TMA: as gemm_cluster.
#include "lab/kernels/gemm/_cluster.cuh"

constexpr int MMA_TILES = schedule::block_m / CONSUMERS / MMA_M;   // of 64 rows, in each consumer
constexpr int ACROSS = schedule::block_n / schedule::part_columns;  // parts side by side
constexpr int PARTS = MMA_TILES * ACROSS;                           // of a consumer's tile
constexpr int REGISTERS = schedule::part_columns / 2;               // of a part
constexpr int TURNS = PARTS == 1 ? 2 : PARTS;                       // parts until the same one has the same partial sum

constexpr int STEPS = TURNS / PARTS;
static_assert(TURNS % 2 == 0 && TURNS % PARTS == 0, "two partial sums take turns");

using Sums = float[PARTS][REGISTERS];

// One of the two partial sums in use: the tensor cores fill it, then it is added.
struct Partial {
    float sum[REGISTERS] = {};

    // Starts a part of a k-step.
    __device__ __forceinline__ void start(const Stage& stage, int first, int part) {
        ptx::wgmma::fence();
        multiply(sum, stage.x[first + part / ACROSS * MMA_M], stage.w[part % ACROSS * schedule::part_columns], false);
        ptx::wgmma::commit_group();
    }

    // Waits for it, with `pending` more in flight.
    template <int pending>
    __device__ __forceinline__ void wait() {
        ptx::wgmma::wait_group<pending>();
        ptx::wgmma::hold(sum);
    }

    __device__ __forceinline__ void add_to(float (&total)[REGISTERS]) const {
#pragma unroll
        for (int i = 0; i < REGISTERS; ++i) total[i] += sum[i];
        ptx::wgmma::hold(total);
    }
};

// Every k-step of a tile, from row `first` of the stages on. Each part starts before the one before it is waited for.
__device__ __forceinline__ void accumulate_promoted(Sums& sums, Partial (&partial)[2], Shared& shared, int first,
                                                    int steps, Position& now) {
    int stage = 0;  // of the part in flight
    const auto start = [&](int turn) {
        const int part = turn % PARTS;
        if (part == 0) ptx::mbarrier::wait(shared.full[now.stage], now.parity);
        partial[turn % 2].start(shared.ring[now.stage], first, part);
    };
    const auto finish = [&](int turn) {
        const int part = turn % PARTS;
        if (part == PARTS - 1) release(shared, stage);
        partial[turn % 2].add_to(sums[part]);
    };
    const auto next = [&](int turn) {
        stage = now.stage;
        if (turn % PARTS == PARTS - 1) now.advance();
        start(turn + 1);
        partial[turn % 2].wait<1>();
        finish(turn);
    };
    const auto end = [&](int turn) {
        partial[turn % 2].wait<0>();
        stage = now.stage;
        now.advance();
        finish(turn);
    };
#pragma unroll
    for (int i = 0; i < PARTS * REGISTERS; ++i) sums[i / REGISTERS][i % REGISTERS] = 0;
    start(0);
    for (; steps > STEPS; steps -= STEPS) {
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) next(turn);
    }
    if (steps == STEPS) {
#pragma unroll
        for (int turn = 0; turn < TURNS - 1; ++turn) next(turn);
        end(TURNS - 1);
    } else {  // a step of one part is left
        end(0);
    }
}

__device__ __forceinline__ void consumer(Shared& shared, const TensorMap& y, const Epilogue& epilogue, int consumer,
                                         Walk walk, int rank, int steps) {
    Sums sums;
    Partial partial[2];
    const int first = consumer * MMA_TILES * MMA_M;
    Position now;
    int next = 0;
    for (Tile tile; walk.next(tile);) {
        accumulate_promoted(sums, partial, shared, first, steps, now);
        tile.row += rank * schedule::block_m + first;
        store(reinterpret_cast<const float(&)[MMA_TILES][ACROSS * REGISTERS]>(sums), shared.y[consumer], next, y, epilogue, 1 + consumer, tile);
    }
    finish_stores();
}

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    gemm_fp8_promoted(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                      const __grid_constant__ TensorMap y_map, const Element*, const Element*, Output*,
                      const Residual* residual, const float* x_scale, const float* w_scale, const float* y_scale, int m,
                      int n, int k) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned<Shared>(dynamic);
    const int rank = schedule::cluster == 1 ? 0 : int(ptx::cluster::rank());
    const int columns = n / W_HALVES, steps = tiles_of(k, BLOCK_K), warpgroup = threadIdx.x / WARPGROUP;
    const Walk walk = walk_of_cluster(m, columns);

    start(shared, x_map, w_map, y_map, CONSUMERS);
    if (warpgroup == 0) {
        ptx::setmaxnreg::dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) producer(shared, x_map, w_map, walk, rank, columns, steps);
    } else {
        ptx::setmaxnreg::inc<CONSUMER_REGISTERS>();
        const Epilogue epilogue(residual, x_scale, w_scale, y_scale, m, columns);
        consumer(shared, y_map, epilogue, warpgroup - 1, walk, rank, steps);
    }
    finish();
}
