"""A bulk copy sends what ordinary stores wrote, which the asynchronous proxy need not see."""

import numpy as np

import lab

FINDS = "missing fence.proxy.async"
ENTRY = "send"
SOURCE = """
extern "C" __global__ void send(const float* x, float* y) {
    __shared__ alignas(16) float tile[64];
    tile[threadIdx.x] = 2 * x[threadIdx.x];
#ifdef FIXED
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    __syncthreads();
    if (threadIdx.x > 0) return;
    const auto from = unsigned(__cvta_generic_to_shared(tile));
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 256;" ::"l"(y), "r"(from) : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
"""


def launch(rng):
    return lab.Launch(grid=1, block=64, args=[lab.In("x", rng.random(64, np.float32)), lab.Out("y", 64, "float32")])
