"""Counted warp requests for packed int4 weights, which become integers, scales and offsets tile by tile."""

import numpy as np

from sim import int4
from sim.jit import njit
from sim.tiles.elements import float_of_fp16
from sim.tiles.memory import load_vector

_ROWS, _COLUMNS, _BYTES = int4.TILE_ROWS, int4.TILE_COLUMNS, int4.TILE_BYTES
_PAIR_BYTES = 4 * _ROWS  # scale and offset of a tile's rows, for a group
_BIAS = int4.BIAS


@njit(cache=True)
def load_groups(count, marks, pair_marks, w, pairs, n, k, row, column, tile, scale, offset, group, zero_points):
    """Load the patch at (row, column) of packed [n, k] weights in groups (sim/int4.py): q + BIAS, zeros outside of k.

    `scale` and `offset`, [rows, groups], are those of the tile's groups: a weight is scale * tile + offset, as the bias
    is taken from the offset and a zero point is scaled. A request is a packed tile, or what its rows have of scales and
    offsets in a group. `w` and `pairs` are the packed arrays; where they are empty, the requests are only counted. Row
    and column are multiples of a packed tile's; a group begins with the tile or holds all of it.
    """
    packed, groups = -(-k // _COLUMNS), -(-k // group)
    if w.size > 0:
        tile[:], scale[:], offset[:] = 0, 0, 0
    for r in range(row, min(row + tile.shape[0], n), _ROWS):
        for c in range(column, min(column + tile.shape[1], k), _COLUMNS):
            load_vector(count, marks, (r // _ROWS * packed + c // _COLUMNS) * _BYTES, _BYTES)
            if w.size > 0:
                _widen(
                    tile[r - row : r - row + _ROWS, c - column : c - column + _COLUMNS], w[r // _ROWS, c // _COLUMNS]
                )
        for c in range(column, min(column + tile.shape[1], k), group):
            load_vector(count, pair_marks, (r // _ROWS * groups + c // group) * _PAIR_BYTES, _PAIR_BYTES)
            if w.size > 0:
                to, index = slice(r - row, r - row + _ROWS), (c - column) // group
                _split(scale[to, index], offset[to, index], pairs[r // _ROWS, c // group], zero_points)
    if w.size > 0:
        tile[:, max(k - column, 0) :] = 0


@njit(cache=True)
def _widen(out, packed):
    """A packed tile as floats of q + BIAS."""
    for step in range(4):
        for g in range(8):
            for t in range(4):
                for b in range(4):
                    both = packed[16 * (4 * g + t) + 4 * step + b]
                    c = 16 * step + 8 * (b % 2) + 2 * t + b // 2
                    out[g, c] = (both & 15) + _BIAS
                    out[g + 8, c] = (both >> 4) + _BIAS


@njit(cache=True)
def _split(scale, offset, pairs, zero_points):
    """Scales and offsets of a packed tile's rows in a group."""
    for r in range(_ROWS):
        pair = pairs[2 * (r % 8) + r // 8]
        scale[r], stored = float_of_fp16(pair[0]), float_of_fp16(pair[1])
        bias = np.float32(_BIAS)
        offset[r] = -scale[r] * (stored + bias) if zero_points else stored - bias * scale[r]
