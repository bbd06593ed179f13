"""What gemv_int4 moves and computes: in closed form, and walked in the tile simulator."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.kernels.common.raster import tiles_of
from lab.kernels.gemv import dot_product
from lab.kernels.gemv.mma_tiles import FLOAT, LANES, MMA_M, PAIRS_BYTES, SIZE, packed_sectors, request_sectors
from lab.problems import Linear
from lab.problems.protocol import SQUARES
from sim.counts import SECTOR, Counts, row_sectors, sectors
from sim.jit import njit
from sim.launch import Array, Launch, Role
from sim.machine import Machine
from sim.tiles import (
    BF16,
    SimulatedChip,
    add_groups,
    count_exp,
    in_packed_order,
    load_groups,
    load_tile,
    load_vector,
    mma,
    store_patch,
)

BLOCK_K = 128  # columns of w in a step of a warp


def scale_bytes(problem: Linear) -> int:
    """Of the scales and offsets of a row tile in a step."""
    return BLOCK_K // problem.group * PAIRS_BYTES


class Out(NamedTuple):
    """How a CTA's part of y is stored: a warp stores `width` columns of `at_once` tokens in one request."""

    part: int  # columns of y that a CTA of a cluster sums
    width: int
    at_once: int


def out_of(problem: Linear, schedule: Any) -> Out:
    """The requests of a schedule."""
    part = tiles_of(schedule.block_n * problem.columns // problem.n, schedule.cluster)
    width = min(part, LANES)
    return Out(part, width, LANES // width)


def parts_of_x(problem: Linear, schedule: Any) -> Iterator[tuple[int, int]]:
    """(first column, columns) of every copy of a row of x, of all CTAs of a cluster."""
    if problem.ordered:
        yield from [(0, problem.k)] * schedule.cluster
        return
    steps = tiles_of(problem.k, BLOCK_K)
    for rank in range(schedule.cluster):
        first, end = rank * steps // schedule.cluster, (rank + 1) * steps // schedule.cluster
        at, end_column, width = first * BLOCK_K, min(end * BLOCK_K, problem.k), schedule.split_k * BLOCK_K
        while at < end_column:
            yield at, min(width, end_column - at)
            at, width = at + width, 2 * width


def theory(problem: Linear, schedule: Any) -> Counts:
    """Counts of a launch; `schedule` is a gemv_int4.Schedule."""
    p, s = problem, schedule
    blocks, token_blocks = tiles_of(p.n, s.block_n), tiles_of(p.m, s.block_m)
    y = _out_sectors(p, s, SIZE, 1)
    order = blocks * sectors(0, FLOAT * p.k) if p.ordered else 0
    loads, stores = token_blocks * (packed_sectors(p) + order), y
    if p.rooted:
        parts = tiles_of(p.k, SQUARES)
        loads += s.cluster * blocks * _rows_sectors(p.m, FLOAT * parts, 0, FLOAT * parts)
    if p.summed:
        for first, rows in _parts(p, s):
            loads += _rows_sectors(p.m, SIZE * p.n, SIZE * first, SIZE * rows)
            loads += token_blocks * _rows_sectors(1, SIZE * p.n, SIZE * first, SIZE * rows)
        stores += y + _out_sectors(p, s, FLOAT, SQUARES)
    row_bytes = SIZE * p.k
    x = blocks * sum(row_sectors(p.m, row_bytes, SIZE * at, SIZE * width) for at, width in parts_of_x(p, s))
    depth = tiles_of(p.k, BLOCK_K) * BLOCK_K
    rows = blocks * (s.block_n + s.teams * MMA_M)  # a tile of ones sums x for each warp
    return Counts(
        flops=p.flops,
        mma_flops=2 * token_blocks * s.block_m * rows * depth,
        exp_count=p.m * p.columns if p.swiglu else 0,
        global_load_sectors=loads,
        global_store_sectors=stores,
        tma_load_bytes=blocks * p.m * row_bytes * (s.cluster if p.ordered else 1),
        l2_to_sm_bytes=SECTOR * (loads + x),
        sm_to_l2_bytes=SECTOR * stores,
        hbm_read_bytes=SECTOR * sum(sectors(0, a.nbytes) for a in _inputs(p)),
        hbm_write_bytes=SECTOR * sum(sectors(0, operand.nbytes) for operand in p.outputs.values()),
    )


def _inputs(problem: Linear) -> list[Array]:
    return [Array(name, Role.IN, *operand) for name, operand in problem.inputs.items()]


def _rows_sectors(rows: int, pitch: int, start: int, nbytes: int) -> int:
    """Of some bytes of so many rows, copied four a lane."""
    request = FLOAT * LANES
    pieces = [(at, min(request, start + nbytes - at)) for at in range(start, start + nbytes, request)]
    return sum(row_sectors(rows, pitch, *piece) for piece in pieces)


def _out_sectors(problem: Linear, schedule: Any, size: int, each: int) -> int:
    """Of y, stored by requests of some columns of some tokens; of what has `size` bytes for `each` so many columns."""
    p, out = problem, out_of(problem, schedule)
    tops = range(0, min(schedule.block_m, p.m), out.at_once)
    whole, rest = divmod(p.m, schedule.block_m)
    blocks = [(schedule.block_m, whole), (rest, 1)]  # a block's bytes are whole sectors, so all alike
    return sum(
        times
        * request_sectors(
            tiles_of(p.columns, each),
            top,
            min(out.at_once, tokens - top),
            column // each,
            tiles_of(columns, each),
            size,
        )
        for column, columns in _widths(p, schedule)
        for tokens, times in blocks
        for top in tops
        if top < tokens
    )


def _parts(problem: Linear, schedule: Any) -> Iterator[tuple[int, int]]:
    """(first, rows) of what each CTA stores."""
    n, part = problem.n, out_of(problem, schedule).part
    for block in range(0, n, schedule.block_n):
        for first in range(block, block + schedule.block_n, part):
            rows = min(part, block + schedule.block_n - first, n - first)
            if rows > 0:
                yield first, rows


def _widths(problem: Linear, schedule: Any) -> Iterator[tuple[int, int]]:
    """(first, columns of y) of every request."""
    columns, halves = problem.columns, problem.n // problem.columns
    part, width, _ = out_of(problem, schedule)
    block_columns = schedule.block_n // halves
    for block in range(0, columns, block_columns):
        for first in range(block, block + block_columns, part):
            end = min(first + part, block + block_columns, columns)
            for column in range(first, end, width):
                yield column, min(width, end - column)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    """Clusters walk their blocks; each CTA its parts of x and its warps' steps along k."""
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    whole = "x" in arrays  # beside index arrays, with which counting alone goes on
    x, w, pairs = (arrays[a.name] if whole else np.zeros((0,) * len(a.shape), a.storage) for a in launch.arrays[:3])
    order = arrays["order"] if p.ordered else np.zeros(0, np.int32)
    sums = np.empty((p.m, p.n) if whole else (0, 0), np.float32)
    there = {**p.inputs, **p.outputs}
    marks = Marks(*(chip.marks(name) if name in there else np.zeros(0, np.uint8) for name in Marks._fields))
    tile = (s.block_m, s.rows, s.teams, s.split_k, s.cluster)
    chip.on_all_cores(
        _grid, chip.count, marks, x, w, pairs, order, sums, p.m, p.n, p.k, *tile, p.group, p.zero_points, p.swiglu,
        SQUARES, *out_of(p, s),
    )  # fmt: skip
    if whole:
        dot_product.finish(p, sums, arrays)
    return chip.counts()


class Marks(NamedTuple):
    """Of every array that a launch may have, empty where it has none."""

    x: NDArray
    w: NDArray
    w_scale: NDArray
    y: NDArray
    order: NDArray
    squares: NDArray
    residual: NDArray
    norm: NDArray
    total: NDArray
    total_squares: NDArray


@njit(cache=True, nogil=True)
def _grid(
    core, cores,
    count, marks, x, w, pairs, order, y, m, n, k, block_m, rows, teams, split_k, cluster, group, zero_points, swiglu,
    squares, part, width, at_once,
):  # fmt: skip
    workers = count.shape[0]
    halves = 2 if swiglu else 1
    half_rows, columns = MMA_M * rows // halves, n // halves
    block_n = MMA_M * rows * teams // halves  # of y
    steps, blocks = -(-k // BLOCK_K), -(-columns // block_n)
    ctas = blocks * -(-m // block_m)
    for worker in range(core, min(workers, ctas), cores):  # the others would only fill their tiles with zeros
        counter = count[worker]
        x_slice = np.zeros((block_m, (-(-steps // cluster)) * BLOCK_K), np.float32)
        w_tile = np.empty((half_rows, BLOCK_K), np.float32)  # its shape alone is used
        total = np.empty((halves * block_n, block_m), np.float32)
        for index in range(worker, ctas, workers):
            row, token = index % blocks * block_n, index // blocks * block_m
            tokens = min(block_m, m - token)
            total[:] = 0
            for rank in range(cluster):
                first, end = rank * steps // cluster * BLOCK_K, (rank + 1) * steps // cluster * BLOCK_K
                x_slice[:tokens] = 0
                at, jump = first, split_k * BLOCK_K
                if order.size > 0:
                    whole = np.zeros((tokens, k), np.float32)
                    load_tile(counter, marks.x, x, m, k, token, 0, whole, BF16)
                    for column in range(first, min(end, k)):
                        x_slice[:tokens, column - first] = whole[:, order[column]]
                    for column in range(first, min(end, k), LANES):
                        load_vector(counter, marks.order, FLOAT * column, FLOAT * min(LANES, min(end, k) - column))
                    at = k
                while at < min(end, k):
                    to = x_slice[:tokens, at - first : min(at + jump, end, k) - first]
                    load_tile(counter, marks.x, x, m, k, token, at, to, BF16)
                    at, jump = at + jump, 2 * jump
                ordered = in_packed_order(x_slice[: tokens if x.size > 0 else 0], group)
                for team in range(teams):
                    for at in range(first, end, BLOCK_K):
                        x_part = x_slice[:, at - first : at - first + BLOCK_K]
                        for half in range(halves):
                            top = (team * halves + half) * half_rows
                            of_w, bound = half * columns + row + team * half_rows, (half + 1) * columns
                            load_groups(
                                counter, marks.w, marks.w_scale, bound, k, of_w, at, half_rows, BLOCK_K, group
                            )  # fmt: skip
                            out = total[top : top + half_rows]
                            mma(counter, out, w_tile, x_part.T, bound - of_w, m - token, k - at, False)
                            if half == 0:  # ones, which sum x
                                mma(counter, out[:MMA_M], w_tile[:MMA_M], x_part.T, 0, 0, 0, False)
                            if x.size > 0:
                                add_groups(
                                    out, w, pairs, bound, k, of_w, at, BLOCK_K, ordered, at - first, group, zero_points
                                )  # fmt: skip
                if marks.squares.size > 0:
                    parts = -(-k // squares)
                    for t in range(token, token + tokens):
                        _load_row(counter, marks.squares, FLOAT * t * parts, FLOAT * parts)
            if y.size > 0:
                for team in range(teams):
                    for half in range(halves):
                        top, of_w = (team * halves + half) * half_rows, half * columns + row + team * half_rows
                        for r in range(min(half_rows, (half + 1) * columns - of_w)):
                            y[token : token + tokens, of_w + r] = total[top + r, :tokens]
            for rank in range(cluster):
                stop = min((rank + 1) * part, block_n)
                own = min(row + stop, columns) - row - rank * part
                if marks.total.size > 0 and own > 0:
                    at = row + rank * part
                    for t in range(token, token + tokens):
                        _load_row(counter, marks.residual, SIZE * (t * n + at), SIZE * own)
                    _load_row(counter, marks.norm, SIZE * at, SIZE * own)
                for c in range(rank * part, stop, width):
                    for t in range(0, tokens, at_once):
                        patch = total[c : min(c + width, stop), t : min(t + at_once, tokens)].T
                        store_patch(
                            counter, marks.y, SIZE, y[:0, :0], m, columns, token + t, row + c, patch, at_once
                        )  # fmt: skip
                        if swiglu:
                            inside = max(0, min(columns - row - c, patch.shape[1]))
                            count_exp(counter, patch.shape[0] * inside)
                        if marks.total.size > 0:
                            store_patch(
                                counter, marks.total, SIZE, y[:0, :0], m, columns, token + t, row + c, patch, at_once
                            )  # fmt: skip
                            sums = patch[:, : -(-patch.shape[1] // squares)]
                            store_patch(
                                counter, marks.total_squares, FLOAT, y[:0, :0], m, -(-n // squares), token + t,
                                (row + c) // squares, sums, at_once,
                            )  # fmt: skip


@njit(cache=True)
def _load_row(count, marks, start, nbytes):
    """Contiguous bytes, four a lane."""
    for at in range(0, nbytes, FLOAT * LANES):
        load_vector(count, marks, start + at, min(FLOAT * LANES, nbytes - at))
