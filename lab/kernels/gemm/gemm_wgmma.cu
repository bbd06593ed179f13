// gemm_wgmma: y[m, n] = x[m, k] @ w[n, k].T on the tensor cores, fed by TMA: prefill.
//
// Idea: a ring of `stages` tiles in shared memory. TMA fills a stage and reports its bytes to that stage's `full`
// barrier; wgmma reads both operands from shared memory, and one group stays in flight while the next is issued.
// Adds to gemm_mma_sync: whole tiles copied by TMA, products of a warpgroup that read both from shared memory.
//
// Warp roles: all alike, but for one lane. Warpgroup g owns rows 64 g .. 64 g + 63 of the CTA's tile. When the group of
// step s - 1 is done, every warp arrives on that stage's `empty` barrier, and one lane of warp 0 refills the stage.
//
//   TMA         | fill 0 | fill 1 | fill 2 | fill 3 |        | fill 4 | fill 5 | ...       stages = 4
//   wgmma                | step 0          | step 1          | step 2          | ...
//   stage freed                                     ^ 0               ^ 1
//
// Bytes expected through TMA: x once for every column of tiles, w once for every row of tiles. From HBM: x, w and y
// once, while the tiles in flight share their operands in L2.
#include "lab/kernels/gemm/wgmma_epilogue.cuh"

constexpr int WARPGROUPS = schedule::block_m / MMA_M;

struct alignas(ALIGNMENT) Shared {
    union {
        Stage ring[schedule::stages];
        Box y[WARPGROUPS][BUFFERS];  // after the last k-step
    };
    uint64_t full[schedule::stages];   // one arrival, and the bytes of the stage
    uint64_t empty[schedule::stages];  // one arrival from every warp
};

static_assert(sizeof(Shared) + ALIGNMENT == schedule::shared_bytes, "what the launch asks for");
static_assert(schedule::threads == WARPGROUPS * WARPGROUP, "a warpgroup for every 64 rows");

__device__ __forceinline__ void fill(Shared& shared, int stage, const TensorMap& x, const TensorMap& w, Tile tile,
                                     int step) {
    ptx::mbarrier::arrive_expect_tx(shared.full[stage], schedule::stage_bytes);
    ptx::tma::load_2d(shared.ring[stage].x, x, step * BLOCK_K, tile.row, shared.full[stage]);
    ptx::tma::load_2d(shared.ring[stage].w, w, step * BLOCK_K, tile.column, shared.full[stage]);
}

// Every k-step of this warpgroup's 64 rows, and the refills.
__device__ __forceinline__ void accumulate(float (&sum)[schedule::block_n / 2], Shared& shared, const TensorMap& x,
                                           const TensorMap& w, Tile tile, int steps) {
    const int group = warpgroup_index();
    Position now, before;
    int step = 0;
    do {  // one step at least: the zeros of a path without any would have wgmma serialised
        ptx::mbarrier::wait(shared.full[now.stage], now.parity);
        ptx::wgmma::fence();
        multiply(sum, shared.ring[now.stage].x[group * MMA_M], shared.ring[now.stage].w[0], step > 0);
        ptx::wgmma::commit_group();
        now.advance();
        if (step == 0) continue;
        ptx::wgmma::wait_group<1>();  // of step - 1, whose stage this warp needs no more
        if (threadIdx.x % WARP == 0) ptx::mbarrier::arrive(shared.empty[before.stage]);
        const int next = step - 1 + schedule::stages;
        if (threadIdx.x == 0 && next < steps) {
            ptx::mbarrier::wait(shared.empty[before.stage], before.parity);
            fill(shared, before.stage, x, w, tile, next);
        }
        __syncwarp();
        before.advance();
    } while (++step < steps);
    ptx::wgmma::wait_group<0>();
    ptx::wgmma::hold(sum);
}

extern "C" __global__ void __launch_bounds__(schedule::threads, schedule::ctas_per_sm)
    gemm_wgmma(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
               const __grid_constant__ TensorMap y_map, const Element*, const Element*, Output*, int m, int n, int k) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned<Shared>(dynamic);
    const Tile tile = tile_at(blockIdx.x, tiles_of(m, schedule::block_m), tiles_of(n, schedule::block_n),
                              schedule::block_m, schedule::block_n);
    const int steps = tiles_of(k, BLOCK_K);

    if (threadIdx.x == 0) {
        init_ring(shared, x_map, w_map, y_map, schedule::threads / WARP);
        for (int step = 0; step < min(schedule::stages, steps); ++step) fill(shared, step, x_map, w_map, tile, step);
    }
    __syncthreads();

    float sum[1][schedule::block_n / 2] = {};
    accumulate(sum[0], shared, x_map, w_map, tile, steps);
    __syncthreads();  // no warpgroup reads the ring any more, whose place y takes
    const int group = warpgroup_index();
    int next = 0;
    store(sum, shared.y[group], next, y_map, {nullptr, nullptr, nullptr, nullptr, m, n}, 1 + group,
          {tile.row + group * MMA_M, tile.column});
    finish_stores();
}
