// gemm_fp8_promoted: y[m, n] = x[m, k] @ w[n, k].T of fp8, summed in float32.
//
// Idea: the tensor cores keep some 13 bits of a sum of fp8 products, too few for a long k. So each k-step of 128 starts
// a new sum, which the consumers then add to float32 registers. While one consumer adds, the other multiplies, so the
// tensor cores see no pause. The price is registers: one 64-row partial sum beside the whole of a consumer's sums.
// Adds to gemm_cluster: promotion.
//
//   consumer 0   | mma step 0 | add | wait       | mma step 1 | add | ...
//   consumer 1                | mma step 0       | add | wait       | mma step 1 | add | ...
//
// Bytes expected through TMA: as gemm_cluster.
#include "lab/kernels/gemm/_cluster.cuh"

constexpr int MMA_TILES = schedule::block_m / CONSUMERS / MMA_M;  // of 64 rows, in each consumer
constexpr int REGISTERS = schedule::block_n / 2;                  // of 64 rows

// Every k-step of a tile, from row `first` of the stages on. The sum of a step stays in the tensor cores, of steps not.
__device__ __forceinline__ void accumulate_promoted(float (&sum)[MMA_TILES][REGISTERS], float (&partial)[REGISTERS],
                                                    Shared& shared, int first, int steps, Position& now) {
#pragma unroll
    for (int i = 0; i < MMA_TILES * REGISTERS; ++i) sum[i / REGISTERS][i % REGISTERS] = 0;
    for (int step = 0; step < steps; ++step, now.advance()) {
        const Stage& stage = shared.ring[now.stage];
        ptx::mbarrier::wait(shared.full[now.stage], now.parity);
#pragma unroll
        for (int t = 0; t < MMA_TILES; ++t) {
            ptx::wgmma::fence();
            multiply(partial, stage.x[first + t * MMA_M], stage.w[0], false);
            ptx::wgmma::commit_group();
            ptx::wgmma::wait_group<0>();
            ptx::wgmma::hold(partial);
            if (t == MMA_TILES - 1) release(shared, now.stage);
#pragma unroll
            for (int i = 0; i < REGISTERS; ++i) sum[t][i] += partial[i];
        }
    }
}

__device__ __forceinline__ void consumer(Shared& shared, const TensorMap& y, const Epilogue& epilogue, int consumer,
                                         Walk walk, int rank, int steps) {
    float sum[MMA_TILES][REGISTERS], partial[REGISTERS] = {};
    const int first = consumer * MMA_TILES * MMA_M;
    Position now;
    int next = 0;
    for (Tile tile; walk.next(tile);) {
        accumulate_promoted(sum, partial, shared, first, steps, now);
        tile.row += rank * schedule::block_m + first;
        store(sum, shared.y[consumer], next, y, epilogue, 1 + consumer, tile);
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
