// What the GEMMs with warp roles share: a producer and two consumers, their registers, their shared memory.
#pragma once
#include "lab/kernels/gemm/_epilogue.cuh"
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
