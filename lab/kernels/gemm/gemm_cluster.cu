// gemm_cluster: y[m, n] = x[m, k] @ w[n, k].T by clusters of CTAs that load their common rows of w once.
//
// Idea: the CTAs of a cluster take tiles one below the other, which need the same rows of w. Each loads its share of them
// and TMA delivers it to the shared memory of all, so that L2 is asked for w once a cluster. A stage is free when the
// consumers of every CTA have said so to every producer that writes to it.
// Adds to gemm_persistent: clusters, multicast; and what a transformer step asks of a layer: fp8 operands with scales
// (summed in the tensor cores), a residual, swiglu (a tile's rows of w are then half gate, half up), y in fp8.
//
//   CTA 0   x[rows 0]  <- TMA        w <- TMA: first half  -> both CTAs
//   CTA 1   x[rows 1]  <- TMA        w <- TMA: second half -> both CTAs
//
// Bytes expected through TMA: delivered as in gemm_wgmma; asked of L2: w once a cluster.
#include "lab/kernels/gemm/cluster_ring.cuh"

constexpr int MMA_TILES = schedule::block_m / CONSUMERS / MMA_M;  // of 64 rows, in each consumer

__device__ __forceinline__ void consumer(Shared& shared, const TensorMap& y, const Epilogue& epilogue, int consumer,
                                         Walk walk, int rank, int steps) {
    float sum[MMA_TILES][schedule::block_n / 2] = {};
    const int first = consumer * MMA_TILES * MMA_M;
    const auto free = [&](int stage) { release_cluster(shared.empty[stage]); };
    Position now;
    int next = 0;
    for (Tile tile; walk.next(tile);) {
        accumulate(sum, shared, first, steps, now, free);
        tile.row += rank * schedule::block_m + first;
        store(sum, shared.y[consumer], next, y, epilogue, 1 + consumer, tile);
    }
    finish_stores();
}

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    gemm_cluster(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                 const __grid_constant__ TensorMap y_map, const Element*, const Element*, Output*,
                 const Residual* residual, const float* x_scale, const float* w_scale, const float* y_scale, int m,
                 int n, int k) {
    run_cluster<CONSUMERS>(x_map, w_map, y_map, {residual, x_scale, w_scale, y_scale}, m, n, k, consumer);
}
