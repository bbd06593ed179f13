// Wrong: a CTA writes into the shared memory of a neighbour that may already have exited.
#include "ptx/address.cuh"
#include "ptx/cluster.cuh"
#include "schedule.cuh"

extern "C" __global__ void cluster_peer_gone(const int* x, int* y) {
    __shared__ int inbox[32];
    const int at = blockIdx.x * 32 + threadIdx.x;
    const uint32_t remote = ptx::address::shared_of_cta(&inbox[threadIdx.x], 0);
    ptx::cluster::arrive();  // the neighbour has started
    ptx::cluster::wait();
    if (ptx::cluster::rank() == 1)
        asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(remote), "r"(x[at]) : "memory");
    y[at] = x[at];
    if (schedule::fixed) {
        ptx::cluster::arrive();
        ptx::cluster::wait();
    }
}
