// gemm_pingpong: y[m, n] = x[m, k] @ w[n, k].T, where one consumer multiplies while the other rounds and stores.
//
// Idea: the two consumers take whole tiles in turn. The tensor cores go on with the next tile during the last one's epilogue,
// which pays where k is short and a tile's epilogue is a large part of its time. The ring needs no change: the producer
// fills it tile by tile, and a consumer skips the steps of the other's tiles. It starts a tile only when the other has
// issued all of its own: the parity of a barrier cannot tell a stage's next lap from the one after.
// Adds to gemm_cluster: overlap of a tile's epilogue with the next tile's mma.
//
//   producer    | tile 0: fill fill | tile 1: fill fill | tile 2: fill fill | ...
//   consumer 0      | tile 0: mma mma | round, store     | tile 2: mma mma | ...
//   consumer 1                        | tile 1: mma mma  | round, store     | ...
//
// Bytes expected through TMA: as gemm_cluster, for its own smaller tiles.
#include "lab/kernels/gemm/cluster_ring.cuh"

constexpr int MMA_TILES = schedule::block_m / MMA_M;  // of 64 rows, in a tile
constexpr int TURN = 1 + CONSUMERS;                   // named barrier of consumer 0's turn; consumer 1's is the next

__device__ __forceinline__ void consumer(Shared& shared, const TensorMap& y, const Epilogue& epilogue, int consumer,
                                         Walk walk, int rank, int steps) {
    float sum[MMA_TILES][schedule::block_n / 2] = {};
    const auto free = [&](int stage) { release_cluster(shared.empty[stage]); };
    Position now;
    int next = 0, number = 0;
    for (Tile tile; walk.next(tile); ++number) {
        if (number % CONSUMERS != consumer) {
            now.skip(steps);
            continue;
        }
        if (number > 0) ptx::barrier::sync<CONSUMERS * WARPGROUP>(TURN + consumer);
        const int last = issue(sum, shared, 0, steps, now, free);
        if (walk.more()) ptx::barrier::arrive<CONSUMERS * WARPGROUP>(TURN + 1 - consumer);
        drain(sum, last, free);
        tile.row += rank * schedule::block_m;
        store(sum, shared.y[consumer], next, y, epilogue, 1 + consumer, tile);
    }
    finish_stores();
}

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    gemm_pingpong(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                  const __grid_constant__ TensorMap y_map, const Element*, const Element*, Output*,
                  const Residual* residual, const float* x_scale, const float* w_scale, const float* y_scale, int m,
                  int n, int k) {
    run_cluster<1>(x_map, w_map, y_map, {residual, x_scale, w_scale, y_scale}, m, n, k, consumer);
}
