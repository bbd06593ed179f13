"""One CTA hands a value to another behind a flag, which it may raise before the value is written."""

import numpy as np

import lab

FINDS = "race on global memory"
ENTRY = "hand_over"
SOURCE = """
extern "C" __global__ void hand_over(int* value, int* flag, int* y) {
    if (blockIdx.x == 0) {
        *value = 42;
#ifdef FIXED
        __threadfence();
#endif
        atomicExch(flag, 1);
    } else {
        while (atomicAdd(flag, 0) == 0) {}
        __threadfence();
        *y = *value;
    }
}
"""


def launch(_):
    held = [lab.InOut(name, np.zeros(1, np.int32)) for name in ("value", "flag")]
    return lab.Launch(grid=2, block=1, args=[*held, lab.Out("y", 1, "int32")])
