"""Counted CUDA-core arithmetic with float32 accumulation."""

import numpy as np

from sim.jit import njit, overload
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
    if str(element) == "float32":
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


@njit(cache=True)
def fma_tile(count, total, a, b, rows, columns, depth, numerics):
    """total[m, n] += a[m, k] b[k, n] on the CUDA cores.

    `rows`, `columns` and `depth` are how far the problem reaches from the tile's first row, column and k: useful work
    is what lies inside. m and k are multiples of four. Only counts where not `numerics`.
    """
    m, k = a.shape
    count_fma(count, max(min(m, rows), 0) * max(min(b.shape[1], columns), 0) * max(min(k, depth), 0))
    if numerics:
        multiply_add(total, a, b)


@njit(cache=True, fastmath={"reassoc", "nsz", "contract"})
def multiply_add(total, a, b):
    """total += a b in blocks of four rows by four k, whose inner loop over columns is a run of vector FMAs."""
    for i in range(0, a.shape[0], 4):
        total0, total1, total2, total3 = total[i], total[i + 1], total[i + 2], total[i + 3]
        for k in range(0, a.shape[1], 4):
            b0, b1, b2, b3 = b[k], b[k + 1], b[k + 2], b[k + 3]
            a00, a01, a02, a03 = a[i, k], a[i, k + 1], a[i, k + 2], a[i, k + 3]
            a10, a11, a12, a13 = a[i + 1, k], a[i + 1, k + 1], a[i + 1, k + 2], a[i + 1, k + 3]
            a20, a21, a22, a23 = a[i + 2, k], a[i + 2, k + 1], a[i + 2, k + 2], a[i + 2, k + 3]
            a30, a31, a32, a33 = a[i + 3, k], a[i + 3, k + 1], a[i + 3, k + 2], a[i + 3, k + 3]
            for j in range(b.shape[1]):
                total0[j] += a00 * b0[j] + a01 * b1[j] + a02 * b2[j] + a03 * b3[j]
                total1[j] += a10 * b0[j] + a11 * b1[j] + a12 * b2[j] + a13 * b3[j]
                total2[j] += a20 * b0[j] + a21 * b1[j] + a22 * b2[j] + a23 * b3[j]
                total3[j] += a30 * b0[j] + a31 * b1[j] + a32 * b2[j] + a33 * b3[j]
