"""A sum starts from whatever its register held."""

import numpy as np

import lab

FINDS = "uninitialised output"
ENTRY = "total"
SOURCE = """
extern "C" __global__ void total(const int* x, int* y) {
    __shared__ int sum;
#ifdef FIXED
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
#endif
    atomicAdd(&sum, x[threadIdx.x]);
    __syncthreads();
    if (threadIdx.x == 0) *y = sum;
}
"""


def launch(rng):
    return lab.Launch(grid=1, block=64, args=[lab.In("x", rng.integers(0, 9, 64, np.int32)), lab.Out("y", 1, "int32")])
