// gemm_persistent: y[m, n] = x[m, k] @ w[n, k].T by as many CTAs as there are SMs, each taking tile after tile.
//
// Idea: while the consumers round a tile and its stores are issued, the producer already fills the ring for the next one, and
// a tile's stores end during the next tile's k-steps. Nothing but the first fill and the last store is exposed.
// Adds to gemm_warp_specialized: persistence, loads and stores that overlap the neighbouring tiles.
//
//   producer    | tile 0: fill fill fill ...       | tile 1: fill fill fill ...
//   consumers       | tile 0: mma mma mma ... | round | tile 1: mma mma mma ...
//   stores                                       | tile 0: box by box |
//
// Bytes expected through TMA: as gemm_wgmma.
#include "lab/kernels/gemm/warp_roles.cuh"

constexpr int MMA_TILES = schedule::block_m / CONSUMERS / MMA_M;  // of 64 rows, in each consumer

// One thread keeps the ring full, from tile to tile without a pause.
__device__ __forceinline__ void producer(Shared& shared, const TensorMap& x, const TensorMap& w, Walk walk, int steps) {
    Position at;
    for (Tile tile; walk.next(tile);) load_tile(shared, x, w, tile, steps, at);
}

__device__ __forceinline__ void consumer(Shared& shared, const TensorMap& y, const Epilogue& epilogue, int consumer,
                                         Walk walk, int steps) {
    float sum[MMA_TILES][schedule::block_n / 2] = {};
    const int first = consumer * MMA_TILES * MMA_M;
    const auto release = [&](int stage) {
        if (threadIdx.x % WARP == 0) ptx::mbarrier::arrive(shared.empty[stage]);
    };
    Position now;
    int next = 0;
    for (Tile tile; walk.next(tile);) {
        accumulate(sum, shared, first, steps, now, release);
        store(sum, shared.y[consumer], next, y, epilogue, 1 + consumer, {tile.row + first, tile.column});
    }
    finish_stores();
}

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    gemm_persistent(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                    const __grid_constant__ TensorMap y_map, const Element*, const Element*, Output*, int m, int n, int k) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned<Shared>(dynamic);
    const int steps = tiles_of(k, BLOCK_K), warpgroup = warpgroup_index();
    const Walk walk{tiles_of(m, schedule::block_m), tiles_of(n, schedule::block_n), schedule::block_m,
                    schedule::block_n,              int(blockIdx.x),                int(gridDim.x)};

    if (threadIdx.x == 0) init_ring(shared, x_map, w_map, y_map, CONSUMERS * WARPGROUP / WARP);
    __syncthreads();

    if (warpgroup == 0) {
        ptx::setmaxnreg::dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) producer(shared, x_map, w_map, walk, steps);
    } else {
        ptx::setmaxnreg::inc<CONSUMER_REGISTERS>();
        consumer(shared, y_map, {nullptr, nullptr, nullptr, nullptr, m, n}, warpgroup - 1, walk, steps);
    }
}
