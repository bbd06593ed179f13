"""The last CTA has threads beyond the array."""

import numpy as np

import lab

FINDS = "out of bounds"
ENTRY = "double_it"
SOURCE = """
extern "C" __global__ void double_it(const int* x, int* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
#ifdef FIXED
    if (i >= n) return;
#endif
    y[i] = 2 * x[i];
}
"""


def launch(rng):
    x = rng.integers(0, 100, 100, np.int32)
    return lab.Launch(grid=2, block=64, args=[lab.In("x", x), lab.Out("y", 100, "int32"), np.int32(100)])
