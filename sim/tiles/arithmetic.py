"""Counted CUDA-core arithmetic with float32 accumulation, and bf16 bits."""

import numpy as np
from numba import types
from numba.extending import overload

from sim.jit import njit
from sim.tiles.chip import EXP, FLOPS


@njit(cache=True)
def count_fma(count, times):
    """Count `times` fused multiply-adds."""
    count[FLOPS] += 2 * times


@njit(cache=True, inline="always")
def float_of_bf16(bits):
    """The float32 that a bf16 bit pattern stands for."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(cache=True, inline="always")
def bf16_of_float(value):
    """The bf16 bits of a float32, rounded to nearest even; NaN becomes the NaN that `cvt.rn.bf16.f32` makes."""
    bits = np.float32(value).view(np.uint32)
    if value != value:
        return np.uint16(0x7FFF)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((np.uint64(bits) + np.uint64(odd) + np.uint64(0x7FFF)) >> np.uint64(16))


def _float_of(element):
    """The float32 of an array element: a float itself, or bf16 bits; chosen by type when compiled."""
    raise NotImplementedError("compiled code only")


@overload(_float_of, inline="always")
def _compile_float_of(element):
    if isinstance(element, types.Float):
        return lambda element: element
    return lambda element: float_of_bf16(element)


@njit(cache=True, fastmath={"reassoc", "nsz", "contract"})
def dot(x, w, x_row, w_row, start, width):
    """Dot product of `width` elements of a row of x and of w from `start` on, accumulated in float32.

    Both are float32 or both bf16 bits. Rows are sliced in here: a view made by the caller would be counted as a
    reference, and two threads that count references of one array slow each other down.
    """
    x_part, w_part = x[x_row, start : start + width], w[w_row, start : start + width]
    total = np.float32(0)
    for i in range(x_part.size):
        total += _float_of(x_part[i]) * _float_of(w_part[i])
    return total


@njit(cache=True)
def count_exp(count, times):
    """Count `times` exponentials."""
    count[EXP] += times
