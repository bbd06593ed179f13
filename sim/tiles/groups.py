"""Counted warp requests for packed int4 weights, and their products with few tokens: nothing is unpacked."""

import numpy as np

from sim import int4
from sim.jit import njit
from sim.tiles.elements import float_of_fp16
from sim.tiles.memory import load_vector

_ROWS, _COLUMNS, _BYTES = int4.TILE_ROWS, int4.TILE_COLUMNS, int4.TILE_BYTES
_HALF = _ROWS // 2  # rows whose weights are the lower nibbles of a tile; the upper ones are those of as many more
_COLUMN = np.arange(_COLUMNS)
_PLACES = (
    _COLUMN % 8 // 2 * 16 + _COLUMN // 16 * 4 + _COLUMN % 2 * 2 + _COLUMN % 16 // 8
)  # of a column in a row's bytes
_PAIR_BYTES = 4 * _ROWS  # scale and offset of a tile's rows, for a group
_BIAS = np.float32(int4.BIAS)


@njit(cache=True)
def load_groups(count, marks, pair_marks, n, k, row, column, rows, columns, group):
    """Load the patch at (row, column) of packed [n, k] weights in groups (sim/int4.py), so many rows and columns.

    A request is a packed tile, or what its rows have of scales and offsets in a group. Row and column are multiples of
    a packed tile's; a group begins with the patch or holds all of it.
    """
    packed, groups = -(-k // _COLUMNS), -(-k // group)
    for r in range(row, min(row + rows, n), _ROWS):
        for c in range(column, min(column + columns, k), _COLUMNS):
            load_vector(count, marks, (r // _ROWS * packed + c // _COLUMNS) * _BYTES, _BYTES)
        for c in range(column, min(column + columns, k), group):
            load_vector(count, pair_marks, (r // _ROWS * groups + c // group) * _PAIR_BYTES, _PAIR_BYTES)


@njit(cache=True)
def in_packed_order(x, group):
    """x [tokens, whole packed tiles] in the order of a packed row's bytes: [tokens, parts, columns].

    A part is of one of the groups of each packed tile, zeros elsewhere; where a group has a tile or more there is one.
    """
    parts = max(_COLUMNS // group, 1)
    width = _COLUMNS // parts
    ordered = np.zeros((x.shape[0], parts, x.shape[1]), np.float32)
    for t in range(x.shape[0]):
        for first in range(0, x.shape[1], _COLUMNS):
            for part in range(parts):
                for c in range(part * width, (part + 1) * width):
                    ordered[t, part, first + _PLACES[c]] = x[t, first + c]
    return ordered


@njit(cache=True)
def add_groups(total, w, pairs, n, k, row, column, columns, ordered, start, group, zero_points):
    """total[r, t] += scale (w x) + offset (sum of x), group by group as the kernels do, of the patch at (row, column).

    The kernels' w is q + BIAS, whose products the offset takes away; so what is infinite, or too large for a sum,
    becomes what it becomes there. `ordered` is x `in_packed_order`, that of the patch's `columns` from `start` on: a
    view made by the caller would not be known to be contiguous.
    """
    tokens, parts, _ = ordered.shape
    stretch = max(group, _COLUMNS)
    partial = np.empty(_ROWS, np.float32)
    for top in range(row, min(row + total.shape[0], n), _ROWS):
        for first in range(0, min(columns, k - column), stretch):
            end = min(first + stretch, columns, k - column)
            for part in range(min(parts, -(-(end - first) // group))):
                of_rows = pairs[top // _ROWS, (column + first) // group + part]
                for t in range(tokens):
                    partial[:] = 0
                    x_sum = np.float32(0)
                    for at in range(first, end, _COLUMNS):
                        tile, x = w[top // _ROWS, (column + at) // _COLUMNS], ordered[t, part]
                        x_sum += _add_products(partial, tile, x[start + at : start + at + _COLUMNS])
                    out = total[top - row : top - row + _ROWS, t]
                    for r in range(_ROWS):
                        pair = of_rows[2 * (r % _HALF) + r // _HALF]
                        scale, stored = float_of_fp16(pair[0]), float_of_fp16(pair[1])
                        offset = -scale * (stored + _BIAS) if zero_points else stored - _BIAS * scale
                        out[r] = out[r] + scale * partial[r] + offset * x_sum


@njit(cache=True, fastmath={"reassoc", "nsz", "contract"})
def _add_products(partial, w, x):
    """partial[row] += the products of q + BIAS of a packed tile and x in its order, whose sum is returned."""
    x_sum = np.float32(0)
    for i in range(_COLUMNS):
        x_sum += x[i]
    for g in range(_HALF):
        row = w[_COLUMNS * g : _COLUMNS * (g + 1)]
        low, high = np.float32(0), np.float32(0)
        for i in range(_COLUMNS):
            both = np.int32(row[i])
            low += (np.float32(both & np.int32(15)) + _BIAS) * x[i]
            high += (np.float32(both >> np.int32(4)) + _BIAS) * x[i]
        partial[g] += low
        partial[g + _HALF] += high
    return x_sum
