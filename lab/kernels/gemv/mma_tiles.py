"""What the GEMVs on tensor cores share: w is A of mma.m16n8k16, tokens are B; sectors of packed int4, of requests."""

from functools import lru_cache
from itertools import pairwise

from lab.kernels.common.raster import tiles_of
from lab.problems import Linear
from sim import int4
from sim.counts import SECTOR
from sim.jit import njit
from sim.tiles import dot

LANES = 32
MMA_M, MMA_N, MMA_K = 16, 8, 16  # rows of w, tokens, columns of both
FLOAT = 4  # bytes of a sum or of a scale
SIZE = 2  # bytes of an element of x and of y
PAIRS_BYTES = 64  # scale and offset of a row tile and group


def packed_sectors(problem: Linear) -> int:
    """Of packed weights with the scales and offsets of their groups, read once."""
    p = problem
    row_tile = int4.TILE_BYTES * tiles_of(p.k, int4.TILE_COLUMNS) + PAIRS_BYTES * tiles_of(p.k, p.group)
    return tiles_of(p.n, MMA_M) * row_tile // SECTOR


def request_sectors(columns: int, top: int, rows: int, column: int, width: int, size: int = SIZE) -> int:
    """Unique sectors of some columns of neighbouring rows, such as of y, of `columns` elements of so many bytes."""
    return _unique_sectors(size * (top * columns + column) % SECTOR, size * columns, rows, size * width)


@lru_cache(maxsize=4096)
def _unique_sectors(first: int, pitch: int, rows: int, nbytes: int) -> int:
    starts = [first + r * pitch for r in range(rows)]
    spans = [(start // SECTOR, (start + nbytes - 1) // SECTOR) for start in starts]
    return sum(b - a + 1 for a, b in spans) - sum(a[1] == b[0] for a, b in pairwise(spans))


@njit(cache=True)
def add_products(total, w, x):
    """total[row, token] += w x^T: for few tokens, dot products are quicker than the tiles of `mma`."""
    for r in range(w.shape[0]):
        for t in range(x.shape[0]):
            total[r, t] += dot(x, w, t, r, 0, w.shape[1])
