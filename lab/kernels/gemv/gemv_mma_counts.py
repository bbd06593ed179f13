"""What gemv_mma moves and computes: in closed form, and walked in the tile simulator."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.kernels.gemv.mma_tiles import (
    FLOAT,
    LANES,
    MMA_M,
    MMA_N,
    SIZE,
    add_products,
    packed_sectors,
    request_sectors,
)
from lab.problems import Linear
from sim import int4
from sim.counts import SECTOR, Counts, box_sectors, sectors
from sim.formats import FORMATS, decode, encode
from sim.jit import njit
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import (
    SimulatedChip,
    add_groups,
    assign,
    in_packed_order,
    load_groups,
    load_lanes,
    load_patch,
    load_vector,
    mma,
    store_patch,
)

PART_BYTES = 64  # of each row of row-major w in a part of k
PIECE = 16  # bytes of x that four lanes load at once beside packed weights, and one lane beside others


def part_columns(problem: Linear) -> int:
    """Columns of w in a part of a run: 64 bytes of each row, or two tiles of packed int4."""
    return 2 * int4.TILE_COLUMNS if problem.group else PART_BYTES // FORMATS[problem.weights].storage.itemsize


def theory(problem: Linear, schedule: Any) -> Counts:
    """Counts of a launch; `schedule` is a gemv_mma.Schedule."""
    p, s = problem, schedule
    blocks, teams = -(-p.m // s.block_m), -(-p.n // s.team_rows)
    scales, y = _out_sectors(p, s)
    if p.scaled and not p.row_scales:
        scales = blocks * -(-p.n // s.block_n) * min(s.warps, s.block_m * s.block_n // LANES)
    loads = blocks * _weight_sectors(p, s) + teams * _x_sectors(p, s) + scales
    runs = blocks * teams * -(-p.k // (s.fold * part_columns(p)))  # of every row tile
    tiles = s.rows * s.fold + (1 if p.group else 0)  # a tile of ones sums x
    return Counts(
        flops=p.flops,
        mma_flops=2 * runs * tiles * MMA_M * s.block_m * part_columns(p),
        exp_count=0,
        global_load_sectors=loads,
        global_store_sectors=y,
        tma_load_bytes=0,
        l2_to_sm_bytes=SECTOR * loads,
        sm_to_l2_bytes=SECTOR * y,
        hbm_read_bytes=SECTOR * sum(sectors(0, o.nbytes) for o in p.inputs.values()),
        hbm_write_bytes=SECTOR * sectors(0, p.write_bytes),
    )


def _weight_sectors(problem: Linear, schedule: Any) -> int:
    """Of w, and of the scales of its groups, read once."""
    p = problem
    if p.group:
        return packed_sectors(p)
    row, span = p.k * FORMATS[p.weights].storage.itemsize, PART_BYTES * schedule.fold
    if row <= span:  # rows adjoin, and a request counts a sector that two of them share once
        return sectors(0, p.n * row)
    return box_sectors(p.n, row, span)


def _x_sectors(problem: Linear, schedule: Any) -> int:
    """Of x, read once for each row of tiles: by requests of eight tokens, beyond the last that one again."""
    total = 0
    for top, tokens in _token_tiles(problem.m, schedule.block_m):
        for start, nbytes, times in _pieces(problem):
            total += times * request_sectors(problem.k, top, tokens, start, nbytes)
    return total


def _token_tiles(m: int, block_m: int) -> Iterator[tuple[int, int]]:
    """(first, tokens) of the eights of all blocks."""
    for block in range(0, m, block_m):
        tokens = min(block_m, m - block)
        for first in range(0, block_m, MMA_N):
            top = min(first, tokens - 1)
            yield block + top, min(MMA_N, tokens - top)


def _pieces(problem: Linear) -> Iterator[tuple[int, int, int]]:
    """(first column, columns of a row of x in a request, requests of them)."""
    p = problem
    if p.group:
        yield from ((at, PIECE // SIZE, 1) for at in range(0, p.k, PIECE // SIZE))
    elif FORMATS[p.weights].bits == 8:  # a lane loads its 16 columns by two requests, each of half a sector
        yield from ((at, min(part_columns(p), p.k - at), 2) for at in range(0, p.k, part_columns(p)))
    else:
        yield from ((at, min(part_columns(p), p.k - at), 1) for at in range(0, p.k, part_columns(p)))


def _out_sectors(problem: Linear, schedule: Any) -> tuple[int, int]:
    """Of the scales of rows, loaded, and of y, stored: by requests of some columns of some tokens of a block."""
    p, s = problem, schedule
    width = min(s.block_n, LANES)
    at_once = LANES // width
    whole, rest = divmod(p.m, s.block_m)
    scales = y = 0
    for column in range(0, p.n, width):
        columns = min(width, p.n - column)
        for tokens, times in ((s.block_m, whole), (rest, 1)):  # a block's bytes are whole sectors, so all alike
            for top in range(0, tokens, at_once):
                y += times * request_sectors(p.n, top, min(at_once, tokens - top), column, columns)
                scales += times * sectors(FLOAT * column, FLOAT * columns)
    return (scales if p.row_scales else 0), y


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    """Warps walk the chunks of their teams' rows."""
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    nothing = np.zeros((0, 0), np.float32)
    x = decode(arrays["x"], p.activations) if arrays else nothing
    w = decode(arrays["w"], p.weights) if arrays and not p.group else nothing
    packed, pairs = np.zeros((0, 0, 0), np.uint8), np.zeros((0, 0, 0, 0), np.uint16)
    if arrays and p.group:
        packed, pairs = arrays["w"], arrays["w_scale"]
    sums = np.empty((p.m, p.n), np.float32) if arrays else nothing
    marks = chip.marks_of("x", "w", "w_scale", "y")
    chip.each_sm(
        _ctas, *marks, x, w, packed, pairs, sums, p.m, p.n, p.k, FORMATS[p.weights].storage.itemsize, s.block_m,
        s.rows, s.teams, s.split_k, s.unroll, s.fold, part_columns(p), p.group, p.zero_points, p.row_scales,
        p.scaled and not p.row_scales,
    )  # fmt: skip
    if arrays:
        scaled = sums * arrays["w_scale"] if p.scaled and not p.group else sums
        arrays["y"][...] = encode(scaled, p.output)
    return chip.counts()


@njit(cache=True, nogil=True)
def _ctas(
    counter, sm, sms, x_marks, w_marks, scale_marks, y_marks, x, w, packed, pairs, sums, m, n, k, size, block_m, rows,
    teams, split_k, unroll, fold, part, group, zero_points, row_scales, tensor_scale,
):  # fmt: skip
    """Those of one SM."""
    tile_rows, run = MMA_M // fold, fold * part
    team_rows = rows * tile_rows
    block_n, chunk = teams * team_rows, unroll * run
    blocks = -(-n // block_n)
    width = min(block_n, LANES)
    ctas = blocks * -(-m // block_m)
    if sm >= ctas:  # it would only fill its tiles with zeros
        return
    w_tile = np.zeros((team_rows, run), np.float32)
    x_tile = np.zeros((block_m, run), np.float32)
    total = np.empty((block_n, block_m), np.float32)
    for index in range(sm, ctas, sms):
        row, token = index % blocks * block_n, index // blocks * block_m
        tokens = min(block_m, m - token)
        total[:] = 0
        for team in range(teams):
            top = team * team_rows
            if row + top >= n:
                break
            for warp in range(split_k):
                for first in range(warp * chunk, k, split_k * chunk):
                    for at in range(first, min(first + chunk, k), run):
                        if group > 0:
                            load_groups(
                                counter, w_marks, scale_marks, n, k, row + top, at, team_rows, run, group
                            )  # fmt: skip
                        else:
                            load_patch(counter, w_marks, size, w, n, k, row + top, at, w_tile, tile_rows // 2)
                        _load_x(counter, x_marks, x, m, k, token, tokens, at, x_tile, size, part, group)
                        out = total[top : top + team_rows]
                        mma(counter, out, w_tile, x_tile.T, n - row - top, tokens, k - at, False)
                        for _ in range(fold - 1):  # with the parts of k that are not theirs
                            mma(counter, out, w_tile, x_tile.T, 0, 0, 0, False)
                        if group > 0:
                            mma(counter, out[:MMA_M], w_tile[:MMA_M], x_tile.T, 0, 0, 0, False)  # ones, which sum x
                        if x.size > 0 and group > 0:
                            ordered = in_packed_order(x_tile[:tokens], group)
                            add_groups(
                                out, packed, pairs, n, k, row + top, at, run, ordered, 0, group, zero_points
                            )  # fmt: skip
                        elif x.size > 0:
                            add_products(out, w_tile, x_tile[:tokens])
        if tensor_scale:
            for _ in range(min(teams * split_k, block_m * block_n // LANES)):
                load_vector(counter, scale_marks, 0, FLOAT)
        for c in range(0, min(block_n, n - row), width):
            for t in range(0, tokens, LANES // width):
                if row_scales:
                    load_vector(counter, scale_marks, FLOAT * (row + c), FLOAT * min(width, n - row - c))
                patch = total[c : c + width, t : min(t + LANES // width, tokens)].T.copy()
                store_patch(counter, y_marks, SIZE, sums, m, n, token + t, row + c, patch, LANES // width)


@njit(cache=True)
def _load_x(count, marks, x, m, k, token, tokens, column, tile, size, part, group):
    """The columns of a run of a block's tokens, in requests of eight tokens; tokens beyond the last are that one."""
    tile[:] = 0
    for first in range(0, tile.shape[0], MMA_N):
        top = min(first, tokens - 1)
        height = min(MMA_N, tokens - top)
        columns = PIECE // SIZE if group > 0 else part  # of a request
        for at in range(column, min(column + tile.shape[1], k), columns):
            to = tile[first : first + height, at - column : at - column + columns]
            if size == 1 and group == 0:
                lanes = min(part, k - at) * SIZE // (2 * PIECE)
                for t in range(top, top + height):
                    load_lanes(count, marks, SIZE * ((token + t) * k + at), 2 * PIECE, PIECE, lanes, PIECE, 2)
                if x.size > 0:
                    width = min(part, k - at)
                    assign(to[:, :width], x[token + top : token + top + height, at : at + width])
            else:
                load_patch(count, marks, SIZE, x, token + tokens, k, token + top, at, to, MMA_N)
