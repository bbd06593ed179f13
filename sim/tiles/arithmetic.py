"""Counted CUDA-core arithmetic on bf16 bits with float32 accumulation."""

import numpy as np
from numba import njit

from sim.tiles.chip import FLOPS


@njit(cache=True)
def count_fma(count, times):
    """Count `times` fused multiply-adds."""
    count[FLOPS] += 2 * times


@njit(cache=True, inline="always")
def float_of_bf16(bits):
    """The float32 that a bf16 bit pattern stands for."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(cache=True, fastmath={"reassoc", "nsz", "contract"})
def dot(x, w, start, width):
    """Dot product of x[start : start + width] and w[...], both bf16 bits, accumulated in float32."""
    total = np.float32(0)
    for i in range(start, start + width):
        total += float_of_bf16(x[i]) * float_of_bf16(w[i])
    return total
