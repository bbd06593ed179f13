"""What gemv_mma moves and computes: in closed form, and walked in the tile simulator."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.problems import Linear
from sim import int4
from sim.counts import SECTOR, Counts, row_sectors, sectors
from sim.formats import FORMATS, decode, encode
from sim.jit import njit, prange
from sim.launch import Array, Launch, Role
from sim.machine import Machine
from sim.tiles import ELEMENT, Chip, load_patch, load_tile, load_vector, mma, store_patch

LANES = 32
TILE = 16  # rows of w of an mma
EIGHT = 8  # rows of row-major w that a warp copies at once in steps of one run
FLOAT = 4  # bytes of a sum, or of a scale
SIZE = 2  # bytes of an element of x and of y
ROW_BYTES = 64  # of each row of w in a run
PAIRS_BYTES = 64  # scale and offset of a row tile and group


def tiles_of(extent: int, block: int) -> int:
    """How many blocks cover an extent."""
    return -(-extent // block)


def run_columns(problem: Linear) -> int:
    """Columns of w in a run: 64 bytes of each row, or two tiles of packed int4."""
    return 2 * int4.TILE_COLUMNS if problem.group else ROW_BYTES // FORMATS[problem.weights].storage.itemsize


def scale_bytes(problem: Linear) -> int:
    """Of the scales of a run."""
    return run_columns(problem) // problem.group * PAIRS_BYTES if problem.group else 0


class Out(NamedTuple):
    """How a CTA's part of y leaves: a warp stores `width` columns of `at_once` tokens in one request."""

    part: int  # columns of y that a CTA of a cluster sums
    width: int
    at_once: int


def out_of(schedule: Any) -> Out:
    """The requests of a schedule."""
    part = tiles_of(schedule.block_n, schedule.cluster)
    width = min(part, LANES)
    return Out(part, width, LANES // width)


def parts_of_x(problem: Linear, schedule: Any) -> Iterator[tuple[int, int]]:
    """(first column, columns) of every copy of a row of x, of all CTAs of a cluster."""
    step = schedule.runs * run_columns(problem)
    steps = tiles_of(problem.k, step)
    for rank in range(schedule.cluster):
        first, end = rank * steps // schedule.cluster, (rank + 1) * steps // schedule.cluster
        at, end_column, width = first * step, min(end * step, problem.k), schedule.split_k * step
        while at < end_column:
            yield at, min(width, end_column - at)
            at, width = at + width, 2 * width


def theory(problem: Linear, schedule: Any) -> Counts:
    """Counts of a launch; `schedule` is a gemv_mma.Schedule."""
    p, s = problem, schedule
    blocks, token_blocks = tiles_of(p.n, s.block_n), tiles_of(p.m, s.block_m)
    scales, y = _out_sectors(p, s)
    loads = token_blocks * _weight_sectors(p, s) + scales
    if p.scaled and not p.row_scales:
        loads += s.cluster * blocks * token_blocks * s.warps
    row_bytes = SIZE * p.k
    x = blocks * sum(row_sectors(p.m, row_bytes, SIZE * at, SIZE * width) for at, width in parts_of_x(p, s))
    depth = tiles_of(p.k, s.runs * run_columns(p)) * s.runs * run_columns(p)
    rows = blocks * (s.block_n + (s.teams * TILE if p.group else 0))  # a tile of ones sums x for each warp
    return Counts(
        flops=p.flops,
        mma_flops=2 * token_blocks * s.block_m * rows * depth,
        exp_count=0,
        global_load_sectors=loads,
        global_store_sectors=y,
        tma_load_bytes=blocks * p.m * row_bytes,
        l2_to_sm_bytes=SECTOR * (loads + x),
        sm_to_l2_bytes=SECTOR * y,
        hbm_read_bytes=SECTOR * sum(sectors(0, a.nbytes) for a in _inputs(p)),
        hbm_write_bytes=SECTOR * sectors(0, p.write_bytes),
    )


def _inputs(problem: Linear) -> list[Array]:
    return [Array(name, Role.IN, *operand) for name, operand in problem.operands.items()]


def _weight_sectors(problem: Linear, schedule: Any) -> int:
    """Of w, and of the scales of its groups, read once."""
    p = problem
    if p.group:
        tile = int4.TILE_BYTES * tiles_of(p.k, int4.TILE_COLUMNS) + PAIRS_BYTES * tiles_of(p.k, p.group)
        return tiles_of(p.n, TILE) * tile // SECTOR
    row, span = p.k * FORMATS[p.weights].storage.itemsize, schedule.runs * ROW_BYTES
    if row <= span:  # rows adjoin, and a request counts a sector that two of them share once
        return sectors(0, p.n * row)
    return sum(row_sectors(p.n, row, at, min(span, row - at)) for at in range(0, row, span))


def _out_sectors(problem: Linear, schedule: Any) -> tuple[int, int]:
    """Of the scales of rows, loaded, and of y, stored: by requests of some columns of some tokens of a block."""
    p, out = problem, out_of(schedule)
    tops = range(0, min(schedule.block_m, p.m), out.at_once)
    whole, rest = divmod(p.m, schedule.block_m)
    blocks = [(schedule.block_m, whole), (rest, 1)]  # a block's bytes are whole sectors, so all alike
    scales = y = 0
    for column, columns in _widths(p.n, schedule):
        for tokens, times in blocks:
            for top in (t for t in tops if t < tokens):
                y += times * _request(p.n, top, min(out.at_once, tokens - top), column, columns)
                scales += times * sectors(FLOAT * column, FLOAT * columns)
    return (scales if p.row_scales else 0), y


def _widths(n: int, schedule: Any) -> Iterator[tuple[int, int]]:
    """(first, columns of y) of every request."""
    out = out_of(schedule)
    for block in range(0, n, schedule.block_n):
        for part in range(block, block + schedule.block_n, out.part):
            end = min(part + out.part, block + schedule.block_n, n)
            for column in range(part, end, out.width):
                yield column, min(out.width, end - column)


def _request(n: int, top: int, tokens: int, column: int, columns: int) -> int:
    """Unique sectors of some columns of neighbouring rows of y."""
    starts = [SIZE * ((top + t) * n + column) for t in range(tokens)]
    spans = [(start // SECTOR, (start + SIZE * columns - 1) // SECTOR) for start in starts]
    shared = sum(a[1] == b[0] for a, b in pairwise(spans))
    return sum(last - first + 1 for first, last in spans) - shared


def simulate(launch: Launch, arrays: Mapping[str, NDArray] | None, machine: Machine) -> Counts:
    """Clusters walk their blocks; each CTA its parts of x and its warps' steps along k."""
    p, s = launch.problem, launch.schedule
    chip = Chip(launch, machine)
    nothing = np.zeros((0, 0), np.float32)
    x = arrays["x"] if arrays else np.zeros((0, 0), np.uint16)
    w = _weights(p, arrays) if arrays else nothing
    sums = np.empty((p.m, p.n), np.float32) if arrays else nothing
    given = arrays["w_scale"] if arrays and p.scaled else np.ones(1, np.float32)
    scale = np.broadcast_to(given, p.n).astype(np.float32)
    names = [a.name for a in launch.arrays if a.role is not Role.OUT or a.name == "y"]
    marks = [chip.marks(name) if name in names else np.zeros(0, np.uint8) for name in ("x", "w", "w_scale", "y")]
    tile = (s.block_m, s.rows, s.teams, s.split_k, s.cluster, s.runs)
    _grid(
        chip.count, *marks, x, w, scale, sums, p.m, p.n, p.k, *tile, run_columns(p), p.group, p.row_scales,
        p.scaled and not p.row_scales, *out_of(s), ELEMENT[p.activations],
    )  # fmt: skip
    if arrays:
        arrays["y"][...] = encode(sums, p.output)
    return chip.counts()


def _weights(problem: Linear, arrays: Mapping[str, NDArray]) -> NDArray[np.float32]:
    """The weights as float32 [n, k]; scales of rows apart."""
    p = problem
    if p.group:
        return int4.unpack(arrays["w"], arrays["w_scale"], p.n, p.k, p.group, p.zero_points).values
    return decode(arrays["w"], p.weights)


@njit(cache=True, parallel=True)
def _grid(
    count, x_marks, w_marks, scale_marks, y_marks, x, w, scale, y, m, n, k, block_m, rows, teams, split_k, cluster,
    runs, columns, group, row_scales, tensor_scale, part, width, at_once, element,
):  # fmt: skip
    workers = count.shape[0]
    block_n, step = TILE * rows * teams, runs * columns
    steps, blocks = -(-k // step), -(-n // block_n)
    for worker in prange(workers):
        counter = count[worker]
        x_slice = np.zeros((block_m, (-(-steps // cluster)) * step), np.float32)
        width_k = columns if group > 0 else step  # of a request of row-major w
        w_tile = np.empty((TILE * rows, width_k), np.float32)
        total = np.empty((block_n, block_m), np.float32)
        for index in range(worker, blocks * -(-m // block_m), workers):
            row, token = index % blocks * block_n, index // blocks * block_m
            tokens = min(block_m, m - token)
            total[:] = 0
            for rank in range(cluster):
                first, end = rank * steps // cluster, (rank + 1) * steps // cluster
                at_first, end_column = first * step, min(end * step, k)
                x_slice[:] = 0
                at, jump = at_first, split_k * step
                while at < end_column:
                    to = x_slice[:tokens, at - at_first : min(at + jump, end_column) - at_first]
                    load_tile(counter, x_marks, x, m, k, token, at, to, element)
                    at, jump = at + jump, 2 * jump
                for team in range(teams):
                    top = team * rows * TILE
                    for at in range(at_first, end * step, width_k):
                        _load(counter, w_marks, scale_marks, w, n, k, row + top, at, w_tile, group, EIGHT // runs)
                        x_part = x_slice[:, at - at_first : at - at_first + width_k].T
                        out = total[top : top + TILE * rows]
                        mma(counter, out, w_tile, x_part, n - row - top, m - token, k - at, x.size > 0)
                        if group > 0:
                            mma(counter, out[:TILE], w_tile[:TILE], x_part, 0, 0, 0, False)  # ones, which sum x
                if tensor_scale:
                    for _ in range(teams * split_k):
                        load_vector(counter, scale_marks, 0, FLOAT)
            for rank in range(cluster):
                stop = min((rank + 1) * part, block_n)
                for c in range(rank * part, stop, width):
                    for t in range(0, tokens, at_once):
                        if row_scales:
                            inside = max(min(width, stop - c, n - row - c), 0)
                            load_vector(counter, scale_marks, FLOAT * (row + c), FLOAT * inside)
                        patch = total[c : min(c + width, stop), t : min(t + at_once, tokens)].T.copy()
                        if x.size > 0:
                            for r in range(min(patch.shape[1], n - row - c)):
                                patch[:, r] *= scale[row + c + r]
                        store_patch(counter, y_marks, SIZE, y, m, n, token + t, row + c, patch, at_once)


@njit(cache=True)
def _load(count, w_marks, scale_marks, w, n, k, row, column, tile, group, request_rows):
    """A run of a warp's row tiles, as float32; zeros outside of w."""
    if group == 0:
        size = ROW_BYTES * EIGHT // request_rows // tile.shape[1]
        load_patch(count, w_marks, size, w, n, k, row, column, tile, request_rows)
        return
    packed, groups = -(-k // int4_columns), -(-k // group)
    for r in range(row, min(row + tile.shape[0], n), TILE):
        for c in range(column, min(column + tile.shape[1], k), int4_columns):
            load_vector(count, w_marks, (r // TILE * packed + c // int4_columns) * int4_bytes, int4_bytes)
        for c in range(column, min(column + tile.shape[1], k), group):
            load_vector(count, scale_marks, (r // TILE * groups + c // group) * PAIRS_BYTES, PAIRS_BYTES)
    if w.size > 0:
        tile[:] = 0
        height, width = max(min(tile.shape[0], n - row), 0), max(min(tile.shape[1], k - column), 0)
        tile[:height, :width] = w[row : row + height, column : column + width]


int4_columns, int4_bytes = int4.TILE_COLUMNS, int4.TILE_BYTES
