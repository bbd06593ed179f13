"""A tile is read while cp.async may still bring it."""

import numpy as np

import lab

FINDS = "access before cp.async arrival"
ENTRY = "fetch"
SOURCE = """
extern "C" __global__ void fetch(const float* x, float* y) {
    __shared__ alignas(16) float tile[128];
    const auto to = unsigned(__cvta_generic_to_shared(&tile[4 * threadIdx.x]));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x + 4 * threadIdx.x) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
#ifdef FIXED
    asm volatile("cp.async.wait_group 0;" ::: "memory");
#endif
    __syncwarp();
    y[threadIdx.x] = tile[127 - threadIdx.x];
}
"""


def launch(rng):
    return lab.Launch(grid=1, block=32, args=[lab.In("x", rng.random(128, np.float32)), lab.Out("y", 32, "float32")])
