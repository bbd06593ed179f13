"""Counted warp requests for packed int4 weights, which become floats tile by tile."""

import numpy as np

from sim import int4
from sim.jit import njit
from sim.tiles.elements import float_of_fp16
from sim.tiles.memory import load_vector

_ROWS, _COLUMNS, _BYTES = int4.TILE_ROWS, int4.TILE_COLUMNS, int4.TILE_BYTES
_PAIR_BYTES = 4 * _ROWS  # scale and offset of a tile's rows, for a group


@njit(cache=True)
def load_groups(count, marks, pair_marks, w, pairs, n, k, row, column, tile, group, zero_points):
    """Load the patch at (row, column) of packed [n, k] weights in groups (sim/int4.py), zeros outside of it.

    A request is a packed tile, or what its rows have of scales and offsets in a group. `w` and `pairs` are the packed
    arrays; where they are empty, the requests are only counted. Row and column are multiples of a packed tile's.
    """
    packed, groups = -(-k // _COLUMNS), -(-k // group)
    if w.size > 0:
        tile[:] = 0
    for r in range(row, min(row + tile.shape[0], n), _ROWS):
        for c in range(column, min(column + tile.shape[1], k), _COLUMNS):
            load_vector(count, marks, (r // _ROWS * packed + c // _COLUMNS) * _BYTES, _BYTES)
            if w.size > 0:
                out = tile[r - row : r - row + _ROWS, c - column : c - column + _COLUMNS]
                _widen(out, w[r // _ROWS, c // _COLUMNS], pairs[r // _ROWS], c, k, group, zero_points)
        for c in range(column, min(column + tile.shape[1], k), group):
            load_vector(count, pair_marks, (r // _ROWS * groups + c // group) * _PAIR_BYTES, _PAIR_BYTES)


@njit(cache=True)
def _widen(out, packed, pairs, column, k, group, zero_points):
    """A packed tile whose first column is `column` as floats; zeros beyond k."""
    for step in range(4):
        if column + 16 * step >= k:
            continue
        of_group = pairs[(column + 16 * step) // group]
        for g in range(8):
            upper, upper_offset = float_of_fp16(of_group[2 * g, 0]), float_of_fp16(of_group[2 * g, 1])
            lower, lower_offset = float_of_fp16(of_group[2 * g + 1, 0]), float_of_fp16(of_group[2 * g + 1, 1])
            for t in range(4):
                for b in range(4):
                    both = packed[16 * (4 * g + t) + 4 * step + b]
                    c = 16 * step + 8 * (b % 2) + 2 * t + b // 2
                    out[g, c] = _weight(both & 15, upper, upper_offset, zero_points)
                    out[g + 8, c] = _weight(both >> 4, lower, lower_offset, zero_points)
    out[:, max(k - column, 0) :] = 0


@njit(cache=True, inline="always")
def _weight(q, scale, offset, zero_points):
    """The value of an int4 weight; with a min it is rounded once."""
    if zero_points:
        return (np.float32(q) - offset) * scale
    return np.float32(np.float32(q) * scale) + offset
