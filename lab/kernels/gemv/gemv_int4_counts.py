"""What gemv_int4 moves and computes: in closed form, and walked in the tile simulator."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.kernels.common.raster import tiles_of
from lab.kernels.gemv.mma_tiles import FLOAT, LANES, MMA_M, PAIRS_BYTES, SIZE, packed_sectors, request_sectors
from lab.problems import Linear
from sim.counts import SECTOR, Counts, row_sectors, sectors
from sim.formats import encode
from sim.jit import njit
from sim.launch import Array, Launch, Role
from sim.machine import Machine
from sim.tiles import (
    BF16,
    SimulatedChip,
    add_groups,
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


def out_of(schedule: Any) -> Out:
    """The requests of a schedule."""
    part = tiles_of(schedule.block_n, schedule.cluster)
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
    y = _out_sectors(p, s)
    order = blocks * sectors(0, FLOAT * p.k) if p.ordered else 0
    loads = token_blocks * (packed_sectors(p) + order)
    row_bytes = SIZE * p.k
    x = blocks * sum(row_sectors(p.m, row_bytes, SIZE * at, SIZE * width) for at, width in parts_of_x(p, s))
    depth = tiles_of(p.k, BLOCK_K) * BLOCK_K
    rows = blocks * (s.block_n + s.teams * MMA_M)  # a tile of ones sums x for each warp
    return Counts(
        flops=p.flops,
        mma_flops=2 * token_blocks * s.block_m * rows * depth,
        exp_count=0,
        global_load_sectors=loads,
        global_store_sectors=y,
        tma_load_bytes=blocks * p.m * row_bytes * (s.cluster if p.ordered else 1),
        l2_to_sm_bytes=SECTOR * (loads + x),
        sm_to_l2_bytes=SECTOR * y,
        hbm_read_bytes=SECTOR * sum(sectors(0, a.nbytes) for a in _inputs(p)),
        hbm_write_bytes=SECTOR * sectors(0, p.write_bytes),
    )


def _inputs(problem: Linear) -> list[Array]:
    return [Array(name, Role.IN, *operand) for name, operand in problem.inputs.items()]


def _out_sectors(problem: Linear, schedule: Any) -> int:
    """Of y, stored by requests of some columns of some tokens of a block."""
    p, out = problem, out_of(schedule)
    tops = range(0, min(schedule.block_m, p.m), out.at_once)
    whole, rest = divmod(p.m, schedule.block_m)
    blocks = [(schedule.block_m, whole), (rest, 1)]  # a block's bytes are whole sectors, so all alike
    return sum(
        times * request_sectors(p.n, top, min(out.at_once, tokens - top), column, columns)
        for column, columns in _widths(p.n, schedule)
        for tokens, times in blocks
        for top in tops
        if top < tokens
    )


def _widths(n: int, schedule: Any) -> Iterator[tuple[int, int]]:
    """(first, columns of y) of every request."""
    out = out_of(schedule)
    for block in range(0, n, schedule.block_n):
        for part in range(block, block + schedule.block_n, out.part):
            end = min(part + out.part, block + schedule.block_n, n)
            for column in range(part, end, out.width):
                yield column, min(out.width, end - column)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    """Clusters walk their blocks; each CTA its parts of x and its warps' steps along k."""
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    whole = "x" in arrays  # beside index arrays, with which counting alone goes on
    x, w, pairs = (arrays[a.name] if whole else np.zeros((0,) * len(a.shape), a.storage) for a in launch.arrays[:3])
    order = arrays["order"] if p.ordered else np.zeros(0, np.int32)
    sums = np.empty((p.m, p.n) if whole else (0, 0), np.float32)
    marks = [chip.marks(name) for name in ("x", "w", "w_scale", "y")]
    order_marks = chip.marks("order") if p.ordered else np.zeros(0, marks[0].dtype)
    tile = (s.block_m, s.rows, s.teams, s.split_k, s.cluster)
    chip.on_all_cores(
        _grid, chip.count, *marks, order_marks, x, w, pairs, order, sums, p.m, p.n, p.k, *tile, p.group, p.zero_points,
        *out_of(s),
    )  # fmt: skip
    if whole:
        arrays["y"][...] = encode(sums, p.output)
    return chip.counts()


@njit(cache=True, nogil=True)
def _grid(
    core, cores,
    count, x_marks, w_marks, scale_marks, y_marks, order_marks, x, w, pairs, order, y, m, n, k, block_m, rows, teams,
    split_k, cluster, group, zero_points, part, width, at_once,
):  # fmt: skip
    workers = count.shape[0]
    block_n = MMA_M * rows * teams
    steps, blocks = -(-k // BLOCK_K), -(-n // block_n)
    ctas = blocks * -(-m // block_m)
    for worker in range(core, min(workers, ctas), cores):  # the others would only fill their tiles with zeros
        counter = count[worker]
        x_slice = np.zeros((block_m, (-(-steps // cluster)) * BLOCK_K), np.float32)
        w_tile = np.empty((MMA_M * rows, BLOCK_K), np.float32)  # its shape alone is used
        total = np.empty((block_n, block_m), np.float32)
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
                    load_tile(counter, x_marks, x, m, k, token, 0, whole, BF16)
                    for column in range(first, min(end, k)):
                        x_slice[:tokens, column - first] = whole[:, order[column]]
                    for column in range(first, min(end, k), LANES):
                        load_vector(counter, order_marks, FLOAT * column, FLOAT * min(LANES, min(end, k) - column))
                    at = k
                while at < min(end, k):
                    to = x_slice[:tokens, at - first : min(at + jump, end, k) - first]
                    load_tile(counter, x_marks, x, m, k, token, at, to, BF16)
                    at, jump = at + jump, 2 * jump
                ordered = in_packed_order(x_slice[: tokens if x.size > 0 else 0], group)
                for team in range(teams):
                    top = team * rows * MMA_M
                    for at in range(first, end, BLOCK_K):
                        load_groups(
                            counter, w_marks, scale_marks, n, k, row + top, at, MMA_M * rows, BLOCK_K, group
                        )  # fmt: skip
                        x_part = x_slice[:, at - first : at - first + BLOCK_K]
                        out = total[top : top + MMA_M * rows]
                        mma(counter, out, w_tile, x_part.T, n - row - top, m - token, k - at, False)
                        mma(counter, out[:MMA_M], w_tile[:MMA_M], x_part.T, 0, 0, 0, False)  # ones, which sum x
                        if x.size > 0:
                            add_groups(
                                out, w, pairs, n, k, row + top, at, BLOCK_K, ordered, at - first, group, zero_points
                            )  # fmt: skip
            for rank in range(cluster):
                stop = min((rank + 1) * part, block_n)
                for c in range(rank * part, stop, width):
                    for t in range(0, tokens, at_once):
                        patch = total[c : min(c + width, stop), t : min(t + at_once, tokens)].T
                        store_patch(counter, y_marks, SIZE, y, m, n, token + t, row + c, patch, at_once)
