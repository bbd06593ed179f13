"""Counted tensor operations: TMA tile loads and stores, MMA tiles with float32 accumulation."""

from numba import njit

from sim.cache import READ, WRITTEN
from sim.counts import SECTOR
from sim.tiles.chip import FLOPS, L2_TO_SM, MMA_FLOPS, SM_TO_L2, TMA_LOAD_BYTES

_READ, _WRITTEN = READ, WRITTEN


@njit(cache=True)
def load_tile(count, marks, rows, columns, itemsize, row, column, box_rows, box_columns):
    """One TMA load of the box at (row, column) of a row-major [rows, columns] array; out of bounds reads as zero.

    The barrier is told the full box; L2 delivers the sectors of each box row that lie in bounds.
    """
    count[TMA_LOAD_BYTES] += box_rows * box_columns * itemsize
    width = min(columns - column, box_columns) * itemsize
    if width <= 0:
        return
    for r in range(row, min(row + box_rows, rows)):
        start = (r * columns + column) * itemsize
        first, last = start // SECTOR, (start + width - 1) // SECTOR
        count[L2_TO_SM] += SECTOR * (last - first + 1)
        for sector in range(first, last + 1):
            marks[sector] |= _READ


@njit(cache=True)
def store_tile(count, marks, rows, columns, itemsize, row, column, box_rows, box_columns):
    """One TMA store of the box at (row, column), clipped to the array."""
    width = min(columns - column, box_columns) * itemsize
    if width <= 0:
        return
    for r in range(row, min(row + box_rows, rows)):
        start = (r * columns + column) * itemsize
        first, last = start // SECTOR, (start + width - 1) // SECTOR
        count[SM_TO_L2] += SECTOR * (last - first + 1)
        for sector in range(first, last + 1):
            marks[sector] |= _WRITTEN


@njit(cache=True)
def mma(count, m, n, k, useful_m, useful_n, useful_k):
    """Count one m x n x k tensor-core tile, of which the useful part lies inside the problem."""
    count[MMA_FLOPS] += 2 * m * n * k
    count[FLOPS] += 2 * max(useful_m, 0) * max(useful_n, 0) * max(useful_k, 0)
