// Wrong: the producer refills a slot of the ring without waiting until the consumers have released it.
#include "ptx/fence.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule.cuh"

constexpr int STAGES = 2;
constexpr int WIDTH = 32;

struct Shared {
    alignas(128) float tile[STAGES][WIDTH];
    uint64_t full[STAGES], empty[STAGES];
};

extern "C" __global__ void
ring_without_empty_wait(const __grid_constant__ TensorMap x_map, const float*, float* y, int steps) {
    __shared__ Shared shared;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            ptx::mbarrier::init(shared.full[stage], 1);
            ptx::mbarrier::init(shared.empty[stage], WIDTH);
        }
        ptx::fence::mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x >= WIDTH) {  // the producer warp
        for (int step = 0; threadIdx.x == WIDTH && step < steps; ++step) {
            const int stage = step % STAGES, round = step / STAGES;
            if (schedule::fixed) ptx::mbarrier::wait(shared.empty[stage], round % 2 ^ 1);
            ptx::mbarrier::arrive_expect_tx(shared.full[stage], sizeof(shared.tile[stage]));
            ptx::tma::load_2d(shared.tile[stage], x_map, 0, step, shared.full[stage]);
        }
        return;
    }
    float sum = 0;
    for (int step = 0; step < steps; ++step) {
        const int stage = step % STAGES, round = step / STAGES;
        ptx::mbarrier::wait(shared.full[stage], round % 2);
        sum += shared.tile[stage][WIDTH - 1 - threadIdx.x];
        ptx::mbarrier::arrive(shared.empty[stage]);
    }
    y[threadIdx.x] = sum;
}
