// Wrong: a CTA reads what its neighbour in the cluster sends to it before the mbarrier has seen it arrive.
#include "ptx/address.cuh"
#include "ptx/cluster.cuh"
#include "ptx/fence.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/store.cuh"
#include "schedule.cuh"

extern "C" __global__ void store_async_not_awaited(const float* x, float* y) {
    __shared__ alignas(16) float inbox[32][4];
    __shared__ uint64_t arrived;
    const uint32_t peer = ptx::cluster::rank() ^ 1;
    if (threadIdx.x == 0) {
        ptx::mbarrier::init(arrived, 1);
        ptx::fence::mbarrier_init();
        ptx::mbarrier::arrive_expect_tx(arrived, sizeof(inbox));
    }
    __syncwarp();
    ptx::cluster::arrive();  // the neighbour's mbarrier is there
    ptx::cluster::wait();
    const float value = x[blockIdx.x * 32 + threadIdx.x];
    const float four[4] = {value, value, value, value};
    ptx::store::async_cluster(ptx::address::shared_of_cta(inbox[threadIdx.x], peer), four,
                              ptx::address::shared_of_cta(&arrived, peer));
    if (schedule::fixed) ptx::mbarrier::wait_cluster(arrived, 0);
    y[blockIdx.x * 32 + threadIdx.x] = inbox[threadIdx.x][2];
    ptx::mbarrier::wait_cluster(arrived, 0);
}
