"""Output tiles: how many cover an extent, and the order in which CTAs or clusters walk over them (raster.cuh)."""

from typing import NamedTuple

import numpy as np

from sim.cache.walk import LINE, Requests
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


class Walk(NamedTuple):
    """Tiles of y that `workers` take in turns and walk along k in step: extents, tiles and steps in elements.

    `rows` of w belong to a tile's columns of y: twice as many where half of them are gates.
    """

    m: int
    n: int  # columns of y
    k: int
    block_m: int
    block_n: int
    rows: int
    step: int
    group_m: int
    workers: int


def requests(walk: Walk, operand_bytes: int, output_bytes: int) -> Requests:
    """What the workers ask of L2: of each step a box of x and one of w, at its end the tile of y.

    The first half of the workers lies on one half of the chip: CTAs fill one GPC after another, of which each half has
    four. So say the counters of an H200 (experiments/records/hbm_traffic.jsonl): at 4096^3 with tiles of 128 x 128 a
    walk is 3% off at worst for six rasters, where one that deals CTAs by turns, or by draw, is off by up to 38%.
    Sizes are bytes of an element.
    """
    tiles_m, tiles_n, steps = (
        tiles_of(*pair) for pair in ((walk.m, walk.block_m), (walk.n, walk.block_n), (walk.k, walk.step))
    )
    row_lines = max(1, walk.step * operand_bytes // LINE)
    tall = np.minimum(walk.block_m, walk.m - np.arange(tiles_m) * walk.block_m)
    wide = np.minimum(walk.block_n, walk.n - np.arange(tiles_n) * walk.block_n)
    x, w = (np.repeat(part * row_lines, steps) for part in (tall, wide * walk.rows // walk.block_n))
    y = np.maximum(1, np.outer(tall, wide).ravel() * output_bytes // LINE)
    box, half, writes = _requests(walk, tiles_m, tiles_n, steps)
    return Requests(box, half, writes, np.concatenate([x, w, y]).astype(np.int32))


@njit(cache=True)
def _requests(walk, tiles_m, tiles_n, steps):
    tiles = tiles_m * tiles_n
    box = np.empty(tiles * (2 * steps + 1), np.int32)
    half, writes = np.empty(len(box), np.int8), np.zeros(len(box), np.bool_)
    at = 0
    for first in range(0, tiles, walk.workers):
        last = min(first + walk.workers, tiles)
        for step in range(steps + 1):
            for index in range(first, last):
                row, column = tile_at(index, walk.m, walk.n, walk.block_m, walk.block_n, walk.group_m)
                i, j = row // walk.block_m, column // walk.block_n
                side = 2 * (index % walk.workers) // walk.workers
                if step == steps:
                    box[at], half[at], writes[at] = (tiles_m + tiles_n) * steps + i * tiles_n + j, side, True
                    at += 1
                else:
                    box[at], half[at] = i * steps + step, side
                    box[at + 1], half[at + 1] = (tiles_m + j) * steps + step, side
                    at += 2
    return box, half, writes
