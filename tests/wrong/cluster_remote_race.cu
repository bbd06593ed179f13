// Wrong: a CTA reads what its neighbour in the cluster writes into its shared memory, with no cluster barrier between.
#include "ptx/address.cuh"
#include "ptx/cluster.cuh"
#include "schedule.cuh"

extern "C" __global__ void cluster_remote_race(const int* x, int* y) {
    __shared__ int inbox[32];
    const int at = blockIdx.x * 32 + threadIdx.x;
    const uint32_t remote = ptx::address::shared_of_cta(&inbox[threadIdx.x], ptx::cluster::rank() ^ 1);
    ptx::cluster::arrive();  // the neighbour has started
    ptx::cluster::wait();
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(remote), "r"(x[at]) : "memory");
    if (schedule::fixed) {
        ptx::cluster::arrive();
        ptx::cluster::wait();
    }
    y[at] = inbox[threadIdx.x];
    ptx::cluster::arrive();  // the neighbour has written
    ptx::cluster::wait();
}
