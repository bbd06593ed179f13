"""Lanes of one warp pass values through shared memory as if they ran in lock step."""

import numpy as np

import lab

FINDS = "race between lanes"
ENTRY = "shift"
SOURCE = """
extern "C" __global__ void shift(const int* x, int* y) {
    __shared__ int lane[32];
    lane[threadIdx.x] = x[threadIdx.x];
#ifdef FIXED
    __syncwarp();
#endif
    y[threadIdx.x] = lane[(threadIdx.x + 1) % 32];
}
"""


def launch(rng):
    x = rng.integers(0, 100, 32, np.int32)
    return lab.Launch(grid=1, block=32, args=[lab.In("x", x), lab.Out("y", 32, "int32")])
