// Sums the columns of a matrix: one warp loads its tiles by TMA into a ring, another one adds them up.
#include "ptx/fence.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"

constexpr int ROWS = 8, COLUMNS = 32, STAGES = 2;

struct alignas(128) Ring {
    float tile[STAGES][ROWS][COLUMNS];
    uint64_t full[STAGES], empty[STAGES];
};

extern "C" __global__ void pipeline(const __grid_constant__ TensorMap map, float* sums, int tiles) {
    __shared__ Ring ring;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            ptx::mbarrier::init(ring.full[stage], 1);
            ptx::mbarrier::init(ring.empty[stage], 1);
        }
        ptx::fence::mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        for (int i = 0; i < tiles; ++i) {
            int stage = i % STAGES, lap = i / STAGES;
            ptx::mbarrier::wait(ring.empty[stage], (lap & 1) ^ 1);
            if (threadIdx.x == 0) {
                ptx::mbarrier::arrive_expect_tx(ring.full[stage], sizeof ring.tile[0]);
                ptx::tma::load_2d(ring.tile[stage], map, 0, i * ROWS, ring.full[stage]);
            }
        }
    } else {
        float sum = 0.f;
        for (int i = 0; i < tiles; ++i) {
            int stage = i % STAGES, lap = i / STAGES;
            ptx::mbarrier::wait(ring.full[stage], lap & 1);
            for (int row = 0; row < ROWS; ++row) sum += ring.tile[stage][row][threadIdx.x - 32];
            __syncwarp();
            if (threadIdx.x == 32) ptx::mbarrier::arrive(ring.empty[stage]);
        }
        sums[threadIdx.x - 32] = sum;
    }
}
