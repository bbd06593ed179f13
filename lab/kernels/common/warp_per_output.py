"""What the kernels share in which the lanes of a warp lie side by side along k, an element each."""

from sim.counts import box_sectors
from sim.jit import njit
from sim.tiles import load_lanes, load_vector

LANES = 32


def request_sectors(rows: int, k: int, size: int) -> int:
    """Sectors of a walk along each of `rows` contiguous rows of k elements of `size` bytes."""
    return box_sectors(rows, size * k, size * LANES)


@njit(cache=True)
def load_row(count, marks, row, k, size):
    """A row of x or w: one request for each 32 of its elements."""
    whole, rest = k // LANES, k % LANES
    if whole > 0:
        load_lanes(count, marks, size * row * k, 0, size * LANES, 1, size * LANES, whole)
    load_vector(count, marks, size * (row * k + whole * LANES), size * rest)
