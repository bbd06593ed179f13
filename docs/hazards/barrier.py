"""A named barrier waits for more warps than ever come."""

import lab

FINDS = "barrier mismatch"
ENTRY = "meet"
SOURCE = """
extern "C" __global__ void meet(int* y) {
#ifdef FIXED
    asm volatile("bar.sync 1, 64;" ::: "memory");
#else
    asm volatile("bar.sync 1, 96;" ::: "memory");
#endif
    y[threadIdx.x] = 1;
}
"""


def launch(_):
    return lab.Launch(grid=1, block=64, args=[lab.Out("y", 64, "int32")])
