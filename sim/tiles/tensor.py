"""Counted tensor operations: TMA tile loads and stores, MMA tiles with float32 accumulation.

A tile is a float32 array that stands for shared memory or accumulators; its shape is the box. Where the global array is
empty, the primitives only count.
"""

from sim.cache import READ, WRITTEN
from sim.counts import SECTOR
from sim.jit import njit
from sim.tiles.arithmetic import multiply_add
from sim.tiles.chip import FLOPS, L2_TO_SM, LOAD_SECTORS, MMA_FLOPS, SM_TO_L2, TMA_LOAD_BYTES
from sim.tiles.elements import (
    BF16,
    FP8,
    FP16,
    bf16_of_float,
    float_of_bf16,
    float_of_fp8,
    float_of_fp16,
    fp8_of_float,
    fp16_of_float,
)

_READ, _WRITTEN = READ, WRITTEN
_STRIP = 8  # rows of a box that are transposed together, so that their columns are written as short runs


@njit(cache=True)
def load_tile(count, marks, source, rows, columns, row, column, tile, element):
    """One TMA load of the box at (row, column) of a [rows, columns] array of `element`s, FP32 to FP8, into `tile`.

    Out of bounds reads as zero. The barrier is told the full box; L2 delivers the sectors of each box row that lie in
    bounds. Pass `tile.T` to have the box transposed on its way in.
    """
    count[TMA_LOAD_BYTES] += tile.shape[0] * tile.shape[1] * source.itemsize
    count[L2_TO_SM] += SECTOR * _box(marks, source.itemsize, rows, columns, row, column, tile.shape, _READ)
    if source.size > 0:
        _fill(tile, source, rows, columns, row, column, element)


@njit(cache=True)
def copy_tile(count, marks, source, rows, columns, row, column, tile, element):
    """The same box by cp.async, 16 bytes a lane past L1: whole rows are a request's, nothing is read out of bounds."""
    sectors = _box(marks, source.itemsize, rows, columns, row, column, tile.shape, _READ)
    count[LOAD_SECTORS] += sectors
    count[L2_TO_SM] += SECTOR * sectors
    if source.size > 0:
        _fill(tile, source, rows, columns, row, column, element)


@njit(cache=True)
def store_tile(count, marks, target, rows, columns, row, column, tile, element):
    """One TMA store of `tile`, rounded to `element`s, at (row, column) of a [rows, columns] array, clipped to it."""
    count[SM_TO_L2] += SECTOR * _box(marks, target.itemsize, rows, columns, row, column, tile.shape, _WRITTEN)
    if target.size > 0:
        for r in range(min(tile.shape[0], rows - row)):
            width = max(min(tile.shape[1], columns - column), 0)
            _round(target[row + r, column : column + width], tile[r, :width], element)


@njit(cache=True)
def mma(count, total, a, b, rows, columns, depth, numerics):
    """total[m, n] += a[m, k] b[k, n] on the tensor cores.

    `rows`, `columns` and `depth` are how far the problem reaches from the tile's first row, column and k: useful work
    is what lies inside. m and k are multiples of four. Only counts where not `numerics`.
    """
    m, k = a.shape
    inside = max(min(m, rows), 0) * max(min(b.shape[1], columns), 0) * max(min(k, depth), 0)
    mma_useful(count, total, a, b, inside, numerics)


@njit(cache=True)
def mma_useful(count, total, a, b, useful, numerics):
    """As `mma`, where so many of the tile's multiplications are useful work."""
    count[MMA_FLOPS] += 2 * a.shape[0] * b.shape[1] * a.shape[1]
    count[FLOPS] += 2 * useful
    if numerics:
        multiply_add(total, a, b)


@njit(cache=True)
def _box(marks, itemsize, rows, columns, row, column, shape, bit):
    """Mark the sectors of a box's rows that lie in bounds; returns how many, each row by itself."""
    width = min(columns - column, shape[1]) * itemsize
    total = 0
    if width > 0:
        for r in range(row, min(row + shape[0], rows)):
            start = (r * columns + column) * itemsize
            touched = marks[start // SECTOR : (start + width - 1) // SECTOR + 1]
            total += touched.size
            for sector in range(touched.size):
                touched[sector] |= bit
    return total


@njit(cache=True)
def _fill(tile, source, rows, columns, row, column, element):
    box_rows, box_columns = tile.shape
    height, width = max(min(box_rows, rows - row), 0), max(min(box_columns, columns - column), 0)
    if height < box_rows or width < box_columns:
        tile[:] = 0
    for top in range(0, height, _STRIP):
        strip = source[row + top : row + min(top + _STRIP, height), column : column + width]
        target = tile[top : top + strip.shape[0], :width]
        if tile.strides[0] > tile.strides[1]:
            _widen(target, strip, element)
        else:
            _widen(target.T, strip.T, element)


@njit(cache=True)
def _widen(target, source, element):
    """Bits to floats, row by row of the target; the format is chosen once, so that each loop is a plain one."""
    rows, columns = target.shape
    if element == BF16:
        for r in range(rows):
            for c in range(columns):
                target[r, c] = float_of_bf16(source[r, c])
    elif element == FP16:
        for r in range(rows):
            for c in range(columns):
                target[r, c] = float_of_fp16(source[r, c])
    elif element == FP8:
        for r in range(rows):
            for c in range(columns):
                target[r, c] = float_of_fp8(source[r, c])
    else:
        for r in range(rows):
            for c in range(columns):
                target[r, c] = source[r, c]


@njit(cache=True)
def _round(target, source, element):
    """A row of floats to bits; the format is chosen once."""
    if element == BF16:
        for c in range(target.size):
            target[c] = bf16_of_float(source[c])
    elif element == FP16:
        for c in range(target.size):
            target[c] = fp16_of_float(source[c])
    elif element == FP8:
        for c in range(target.size):
            target[c] = fp8_of_float(source[c])
    else:
        for c in range(target.size):
            target[c] = source[c]
