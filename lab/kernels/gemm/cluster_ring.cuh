// Persistent clusters whose CTAs load their common rows of w once, by multicast: the producer, how stages are released
// across the cluster, and a CTA's whole run.
#pragma once
#include "lab/kernels/common/cluster.cuh"
#include "lab/kernels/gemm/warp_roles.cuh"

constexpr int W_PART = box::w_map::rows;  // rows of each half of w that this CTA loads

static_assert(W_PART * schedule::cluster == TILE_COLUMNS, "the CTAs of a cluster load all rows of w together");

// The tiles of this CTA's cluster, one tile the rows of all its CTAs.
__device__ __forceinline__ Walk walk_of_cluster(int m, int columns) {
    constexpr int tall = schedule::cluster * schedule::block_m;
    return {tiles_of(m, tall), tiles_of(columns, TILE_COLUMNS), tall, TILE_COLUMNS,
            int(blockIdx.x) / schedule::cluster, int(gridDim.x) / schedule::cluster};
}

__device__ __forceinline__ void start(Shared& shared, const TensorMap& x, const TensorMap& w, const TensorMap& y,
                                      int readers) {
    if (threadIdx.x == 0) init_ring(shared, x, w, y, schedule::cluster * readers * WARPGROUP / WARP);
    sync_cluster();
}

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

// What the epilogue adds or scales with, null where the problem has no such operand.
struct Operands {
    const Residual* residual;
    const float *x_scale, *w_scale, *y_scale;
};

// All that a CTA does; `readers` consumers read every stage.
template <int readers, typename Consumer>
__device__ __forceinline__ void run_cluster(const TensorMap& x, const TensorMap& w, const TensorMap& y,
                                            const Operands& operands, int m, int n, int k, Consumer consumer) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned<Shared>(dynamic);
    const int rank = schedule::cluster == 1 ? 0 : int(ptx::cluster::rank());
    const int columns = n / W_HALVES, steps = tiles_of(k, BLOCK_K), warpgroup = warpgroup_index();
    const Walk walk = walk_of_cluster(m, columns);

    start(shared, x, w, y, readers);
    if (warpgroup == 0) {
        ptx::setmaxnreg::dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) producer(shared, x, w, walk, rank, columns, steps);
    } else {
        ptx::setmaxnreg::inc<CONSUMER_REGISTERS>();
        const auto& [residual, x_scale, w_scale, y_scale] = operands;
        const Epilogue epilogue(residual, x_scale, w_scale, y_scale, m, columns);
        consumer(shared, y, epilogue, warpgroup - 1, walk, rank, steps);
    }
    finish();
}
