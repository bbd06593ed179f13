"""Output tiles: how many cover an extent, and the order in which CTAs or clusters walk over them (raster.cuh)."""

from sim.errors import ScheduleError
from sim.jit import njit


def tiles_of(extent: int, block: int) -> int:
    """How many tiles of `block` cover `extent`."""
    return -(-extent // block)


def require_group(group_m: int) -> None:
    """Raise ScheduleError where rows of tiles cannot be walked in such groups."""
    if not 1 <= group_m <= 1024:
        raise ScheduleError(f"group_m is from 1 to 1,024 rows of tiles; group_m = {group_m}")


@njit(cache=True)
def tile_at(index, m, n, block_m, block_n, group_m):
    """The first row and column of a tile: groups of `group_m` tile rows are walked column by column."""
    tiles_m, tiles_n = -(-m // block_m), -(-n // block_n)
    first = index // (group_m * tiles_n) * group_m
    rows = min(group_m, tiles_m - first)
    inside = index - first * tiles_n
    return (first + inside % rows) * block_m, inside // rows * block_n
