"""A CTA turns its tile round in shared memory, and nobody waits for the others' stores."""

import numpy as np

import lab

FINDS = "race on shared memory"
ENTRY = "turn"
SOURCE = """
extern "C" __global__ void turn(const float* x, float* y) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
#ifdef FIXED
    __syncthreads();
#endif
    y[threadIdx.x] = tile[63 - threadIdx.x];
}
"""


def launch(rng):
    return lab.Launch(grid=1, block=64, args=[lab.In("x", rng.random(64, np.float32)), lab.Out("y", 64, "float32")])


def reference(arrays):
    return {"y": (arrays["x"][::-1], 0)}
