// gemm_warp_specialized: y[m, n] = x[m, k] @ w[n, k].T with a warpgroup that loads and two that multiply.
//
// Idea: one thread of the producer keeps the ring full, and no warp that multiplies ever issues a load or waits to refill.
// The producer gives its registers to the consumers, which hold a larger tile.
// Adds to gemm_wgmma: warp roles, register reallocation.
//
//   producer    | fill 0 | fill 1 | fill 2 | fill 3 | wait empty 0 | fill 4 ...           stages = 4
//   consumer 0           | step 0 | step 1 | step 2 | step 3 ...              rows 0 .. block_m / 2 - 1
//   consumer 1           | step 0 | step 1 | step 2 | step 3 ...              the other half of the rows
//
// Bytes expected through TMA: as gemm_wgmma.
#include "lab/kernels/gemm/warp_roles.cuh"

constexpr int MMA_TILES = schedule::block_m / CONSUMERS / MMA_M;  // of 64 rows, in each consumer

__device__ __forceinline__ void consumer(Shared& shared, const TensorMap& y, const Epilogue& epilogue, int consumer,
                                         Tile tile, int steps) {
    float sum[MMA_TILES][schedule::block_n / 2] = {};
    const int first = consumer * MMA_TILES * MMA_M;
    Position now;
    accumulate(sum, shared, first, steps, now, [&](int stage) {
        if (threadIdx.x % WARP == 0) ptx::mbarrier::arrive(shared.empty[stage]);
    });
    int next = 0;
    store(sum, shared.y[consumer], next, y, epilogue, 1 + consumer, {tile.row + first, tile.column});
    finish_stores();
}

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    gemm_warp_specialized(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                          const __grid_constant__ TensorMap y_map, const Element*, const Element*, Output*, int m, int n,
                          int k) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned<Shared>(dynamic);
    const int steps = tiles_of(k, BLOCK_K), warpgroup = warpgroup_index();
    const Tile tile = tile_at(blockIdx.x, tiles_of(m, schedule::block_m), tiles_of(n, schedule::block_n),
                              schedule::block_m, schedule::block_n);

    if (threadIdx.x == 0) init_ring(shared, x_map, w_map, y_map, CONSUMERS * WARPGROUP / WARP);
    __syncthreads();

    if (warpgroup == 0) {
        ptx::setmaxnreg::dec<PRODUCER_REGISTERS>();
        Position at;
        if (threadIdx.x == 0) load_tile(shared, x_map, w_map, tile, steps, at);
    } else {
        ptx::setmaxnreg::inc<CONSUMER_REGISTERS>();
        consumer(shared, y_map, {nullptr, nullptr, nullptr, nullptr, m, n}, warpgroup - 1, tile, steps);
    }
}
