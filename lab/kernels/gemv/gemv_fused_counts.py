"""What gemv_fused moves and computes: in closed form, and as the tile simulator counts it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.kernels.common.raster import tiles_of
from lab.kernels.gemv.mma_tiles import FLOAT, MMA_M, MMA_N, PAIRS_BYTES, SIZE
from lab.problems import Linear
from sim.counts import SECTOR, Counts, sectors
from sim.formats import FORMATS, decode, encode
from sim.jit import njit, prange
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import (
    Chip,
    add_groups,
    count_exp,
    dot,
    in_packed_order,
    load_bulk,
    load_vector,
    mma,
    store_patch,
)  # fmt: skip

HALF_TILE = MMA_M // 2  # bytes of a column of a packed row tile
REQUEST = 512  # bytes of a warp's load of x
AT_ONCE = 2  # tokens that a warp finishes at once


def tiles(problem: Linear) -> int:
    """Row tiles of y."""
    return problem.columns // MMA_M


def blocks(problem: Linear, schedule: Any) -> int:
    """Of tokens."""
    return tiles_of(problem.m, schedule.block_m)


def pair_bytes(problem: Linear, columns: int) -> int:
    """Of the scales and offsets of a packed row tile's columns."""
    return -(-columns // problem.group) * PAIRS_BYTES


def theory(problem: Linear, schedule: Any) -> Counts:
    p, row_tiles = problem, problem.n // MMA_M
    of_w = p.n * p.k * FORMATS[p.weights].storage.itemsize
    if p.group:
        of_w = row_tiles * (HALF_TILE * p.k + pair_bytes(p, p.k))
    of_w *= blocks(p, schedule)
    whole, rest = divmod(p.m, schedule.block_m)
    requests = row_tiles * (whole * -(-schedule.block_m // AT_ONCE) + -(-rest // AT_ONCE))
    loads = schedule.ctas * p.m * (1 + p.norm) * SIZE * p.k // SECTOR
    if p.scaled:
        loads += requests * (MMA_M * FLOAT // SECTOR if p.row_scales else 1)
    loads += tiles(p) * p.m * p.residual
    stores = tiles(p) * p.m
    return Counts(
        flops=p.flops,
        mma_flops=blocks(p, schedule) * 2 * p.n * MMA_N * p.k * (2 if p.group else 1),  # ones sum x for groups
        exp_count=p.m * p.columns if p.swiglu else 0,
        global_load_sectors=loads,
        global_store_sectors=stores,
        tma_load_bytes=of_w,
        l2_to_sm_bytes=SECTOR * loads + of_w,
        sm_to_l2_bytes=SECTOR * stores,
        hbm_read_bytes=SECTOR * sum(sectors(0, operand.nbytes) for operand in p.inputs.values()),
        hbm_write_bytes=SECTOR * sectors(0, p.write_bytes),
    )


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine, stage: int) -> Counts:
    """CTAs walk their row tiles in stages; sums become y as `finish` of the device code makes it."""
    p, s = launch.problem, launch.schedule
    chip = Chip(launch, machine)
    packed, pairs = np.zeros((0, 0, 0), np.uint8), np.zeros((0, 0, 0, 0), np.uint16)
    x: NDArray = np.zeros((0, 0), np.uint16)
    w = x
    sums, root = np.zeros((0, 0), np.float32), np.ones((1, 1), np.float32)
    if arrays:
        sums = np.zeros((p.m, p.n), np.float32)
        x, root = _normalised(p, arrays)
        if p.group:
            x, packed, pairs = decode(x, "bf16"), arrays["w"], arrays["w_scale"]
        elif p.weights == "bf16":
            w = arrays["w"]
        else:
            x, w = decode(x, "bf16"), decode(arrays["w"], p.weights)
    marks = [
        chip.marks(name) if name in p.inputs or name == "y" else np.zeros(0, np.uint8)
        for name in ("x", "norm", "w", "w_scale", "residual", "y")
    ]
    _grid(
        chip.count, *marks, x, w, packed, pairs, sums, p.m, p.n, p.k, FORMATS[p.weights].storage.itemsize, s.ctas,
        s.block_m, stage, p.group, p.zero_points, p.row_scales, p.swiglu,
    )  # fmt: skip
    if arrays:
        arrays["y"][...] = encode(_finished(p, arrays, sums, root), "bf16")
    return chip.counts()


def _normalised(problem: Linear, arrays: Mapping[str, NDArray]) -> tuple[NDArray, NDArray]:
    """x as it lies in shared memory, in bf16, and what then multiplies the sums of each token."""
    p, x = problem, arrays["x"]
    if not p.norm:
        return x, np.ones((p.m, 1), np.float32)
    values = decode(x, "bf16")
    with np.errstate(over="ignore", invalid="ignore"):
        squares = (values * values).sum(axis=1, keepdims=True)
        return encode(values * decode(arrays["norm"], "bf16"), "bf16"), 1 / np.sqrt(squares / p.k + np.float32(p.eps))


def _finished(problem: Linear, arrays: Mapping[str, NDArray], sums: NDArray, root: NDArray) -> NDArray:
    p = problem
    with np.errstate(over="ignore", invalid="ignore"):
        y: NDArray = sums * arrays["w_scale"] * root if p.scaled else sums * root
        if p.swiglu:
            gate, up = y[:, : p.columns], y[:, p.columns :]
            y = gate / (1 + np.exp(-gate)) * up
        return y + decode(arrays["residual"], "bf16") if p.residual else y


@njit(cache=True, parallel=True)
def _grid(
    count, x_marks, norm_marks, w_marks, scale_marks, residual_marks, y_marks, x, w, packed, pairs, sums, m, n, k, size,
    ctas, block_m, stage, group, zero_points, row_scales, swiglu,
):  # fmt: skip
    workers = count.shape[0]
    halves = 2 if swiglu else 1
    tiles = n // halves // MMA_M
    all_ctas = ctas * -(-m // block_m)
    for worker in prange(min(workers, all_ctas)):
        counter = count[worker]
        ordered = in_packed_order(x[: m if group > 0 else 0], max(group, 1))
        for index in range(worker, all_ctas, workers):
            cta, first = index % ctas, index // ctas * block_m
            last = min(first + block_m, m)
            _bring_x(counter, x_marks, norm_marks, first, last, k)
            for tile in range(tiles * cta // ctas, tiles * (cta + 1) // ctas):
                for half in range(halves):
                    row = (tile + half * tiles) * MMA_M
                    if group > 0:
                        _packed_tile(
                            counter, w_marks, scale_marks, packed, pairs, ordered[first:last], sums[first:last],
                            last - first, n, k, row, stage, group, zero_points,
                        )  # fmt: skip
                    else:
                        _row_tile(counter, w_marks, x, w, sums, first, last, k, row, stage, size)
                        if scale_marks.size > 0:
                            scale, scales = (row, MMA_M) if row_scales else (0, 1)
                            for _ in range(first, last, AT_ONCE):
                                load_vector(counter, scale_marks, FLOAT * scale, FLOAT * scales)
                _finish(counter, residual_marks, y_marks, first, last, m, tiles * MMA_M, tile * MMA_M, swiglu)


@njit(cache=True)
def _bring_x(count, x_marks, norm_marks, first, last, k):
    """A CTA's tokens, and for each the norm's weights."""
    for t in range(first, last):
        for at in range(0, SIZE * k, REQUEST):
            nbytes = min(REQUEST, SIZE * k - at)
            load_vector(count, x_marks, t * SIZE * k + at, nbytes)
            if norm_marks.size > 0:
                load_vector(count, norm_marks, at, nbytes)


@njit(cache=True)
def _packed_tile(
    count, w_marks, scale_marks, packed, pairs, ordered, sums, tokens, n, k, row, stage, group, zero_points
):  # fmt: skip
    tile, groups = row // MMA_M, -(-k // group)
    total = np.zeros((MMA_M, ordered.shape[0]), np.float32)
    for at in range(0, k, stage):
        width = min(stage, k - at)
        load_bulk(count, w_marks, (tile * k + at) * HALF_TILE, width * HALF_TILE)
        load_bulk(count, scale_marks, (tile * groups + at // group) * PAIRS_BYTES, -(-width // group) * PAIRS_BYTES)
        _mma(count, width, tokens)
        _mma(count, width, 0)  # with ones, which sums x
        if packed.size > 0:
            add_groups(total, packed, pairs, n, k, row, at, width, ordered, at, group, zero_points)
    if packed.size > 0:
        sums[:, row : row + MMA_M] = total.T


@njit(cache=True)
def _row_tile(count, w_marks, x, w, sums, first, last, k, row, stage, size):
    for at in range(0, k, stage):
        width = min(stage, k - at)
        _mma(count, width, last - first)
        for r in range(row, row + MMA_M):
            load_bulk(count, w_marks, (r * k + at) * size, width * size)
            if sums.size > 0:
                for t in range(first, last):
                    sums[t, r] += dot(x, w, t, r, at, width)


@njit(cache=True)
def _mma(count, width, tokens):
    """A row tile's columns on the tensor cores, of which so many tokens are useful work."""
    nothing = np.zeros((0, 0), np.float32)
    w, x = np.empty((MMA_M, width), np.float32), np.empty((width, MMA_N), np.float32)  # their shapes alone are used
    mma(count, nothing, w, x, MMA_M, tokens, width, False)


@njit(cache=True)
def _finish(count, residual_marks, y_marks, first, last, m, columns, column, swiglu):
    """y of a row tile: half a warp for each token."""
    nothing = np.zeros((0, 0), np.float32)
    for t in range(first, last, AT_ONCE):
        at_once = min(AT_ONCE, last - t)
        if residual_marks.size > 0:
            for u in range(t, t + at_once):
                load_vector(count, residual_marks, SIZE * (u * columns + column), SIZE * MMA_M)
        patch = np.empty((at_once, MMA_M), np.float32)  # its shape alone is used
        store_patch(count, y_marks, SIZE, nothing, m, columns, t, column, patch, AT_ONCE)
        if swiglu:
            count_exp(count, at_once * MMA_M)
