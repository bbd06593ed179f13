// Warp roles of a wgmma GEMM: a producer and two consumers, their registers, their shared memory.
#pragma once
#include "lab/kernels/gemm/wgmma_epilogue.cuh"
#include "ptx/setmaxnreg.cuh"

constexpr int CONSUMERS = 2;
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

struct alignas(ALIGNMENT) Shared {
    Stage ring[schedule::stages];
    Box y[CONSUMERS][BUFFERS];
    uint64_t full[schedule::stages];   // one arrival, and the bytes of the stage
    uint64_t empty[schedule::stages];  // one arrival from every consumer warp that reads the stage
};

static_assert(sizeof(Shared) + ALIGNMENT == schedule::shared_bytes, "what the launch asks for");
static_assert(schedule::threads == (1 + CONSUMERS) * WARPGROUP, "a producer and two consumers");
static_assert(PRODUCER_REGISTERS + CONSUMERS * CONSUMER_REGISTERS <= (1 + CONSUMERS) * 168, "168 a thread at launch");

// Every k-step of a tile through the ring, by one thread, for a CTA without a cluster.
__device__ __forceinline__ void load_tile(Shared& shared, const TensorMap& x, const TensorMap& w, Tile tile, int steps,
                                          Position& at) {
    for (int step = 0; step < steps; ++step, at.advance()) {
        Stage& stage = shared.ring[at.stage];
        uint64_t& full = shared.full[at.stage];
        ptx::mbarrier::wait(shared.empty[at.stage], at.parity ^ 1);  // on the first lap every stage is empty
        ptx::mbarrier::arrive_expect_tx(full, schedule::stage_bytes);
        ptx::tma::load_2d(stage.x, x, step * BLOCK_K, tile.row, full);
        ptx::tma::load_2d(stage.w, w, step * BLOCK_K, tile.column, full);
    }
}
