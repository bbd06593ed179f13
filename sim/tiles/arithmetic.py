"""Counted CUDA-core arithmetic with float32 accumulation."""

import numpy as np
from numba import types
from numba.extending import overload

from sim.jit import njit
from sim.tiles.chip import EXP, FLOPS
from sim.tiles.elements import float_of_bf16


@njit(cache=True)
def count_fma(count, times):
    """Count `times` fused multiply-adds."""
    count[FLOPS] += 2 * times


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
