"""The simulation of gemm_dequant: the same tiles, groups and splits in Numba."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lab.kernels.common.raster import tile_at
from lab.kernels.gemm.wgmma_mainloop import MMA_M
from lab.problems import Linear
from sim import int4
from sim.counts import Counts
from sim.jit import njit
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import BF16, FP8, FP16, SimulatedChip, load_lanes, load_tile, mma, store_tile

BLOCK_K = 128  # of a step
BOX_K = 64  # of a box of x
SUM_COLUMNS = 8  # of a token's sum of x: N of the mma that makes it, K of the tf32 mma that multiplies it
SCALE_ROWS = 8  # of w, whose scales a warp asks for at once
ROWS = 16  # of w in a packed tile and in a warp
FLOAT = 4  # bytes


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    """Every cluster a tile; its CTAs share the k-steps, then the tokens."""
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    given = dict(arrays) if arrays else {}
    x, w, y = (given.get(a.name, np.zeros((0, 0), a.storage)) for a in launch.arrays[:3])
    marks = chip.marks_of("x", "w", "w_scale", "y")
    integers, scale, offset = _groups(p, given)
    row_scales = np.broadcast_to(given.get("w_scale", np.ones(1)) if p.scaled else np.ones(1), p.n)
    chip.each_sm(
        _clusters, *marks, x, w if not s.group else np.zeros((0, 0), np.uint8), y, integers, scale, offset,
        row_scales.astype(np.float32), p.m, p.n, p.k, launch.ctas // s.split_k, s.block_m, s.block_n, s.split_k,
        s.group_m, s.group, *_packed(p), p.zero_points, 2 if p.row_scales else int(p.scaled), x.size > 0,
    )  # fmt: skip
    return chip.counts()


def _packed(problem: Linear) -> tuple[int, int, int]:
    """Rows of packed tiles, bytes of w in each, halves of scales in each; zeros without groups."""
    if not problem.group:
        return 0, 0, 0
    (rows, columns, nbytes), (_, groups, *pair) = int4.shapes(problem.n, problem.k, problem.group)
    return rows, columns * nbytes, groups * pair[0] * pair[1]


def _groups(problem: Linear, given: Mapping[str, NDArray]) -> tuple[NDArray, NDArray, NDArray]:
    """Integers [n, k], less their zero points or with a bias, and as float32 the scales of groups and their offsets."""
    empty = np.zeros((0, 0), np.float32)
    if not problem.group or not given:
        return np.zeros((0, 0), np.int8), empty, empty
    groups = int4.unpack(given["w"], given["w_scale"], problem.n, problem.k, problem.group, problem.zero_points)
    scale, offset = groups.scale.astype(np.float32), groups.offset.astype(np.float32)
    shift = -groups.each(groups.offset).astype(np.int8) if problem.zero_points else np.int8(int4.BIAS)
    return groups.q.astype(np.int8) + shift, scale, offset


@njit(cache=True, nogil=True)
def _clusters(
    counter, sm, sms, x_marks, w_marks, scale_marks, y_marks, x, w, y, integers, scale, offset, row_scales, m, n, k,
    tiles, block_m, block_n, split_k, group_m, group, packed_rows, packed_bytes, packed_halves, zero_points, scales,
    numerics,
):  # fmt: skip
    """Those of one SM."""
    steps, part = -(-k // BLOCK_K), block_m // split_k
    x_tile = np.empty((block_m, BLOCK_K), np.float32)
    w_tile = np.empty((BLOCK_K, block_n), np.float32)  # transposed on its way in, as the mma wants it
    sums = np.empty((split_k, block_m, block_n), np.float32)
    own = np.empty((part, block_n), np.float32)
    for index in range(sm, tiles, sms):
        row, column = tile_at(index, m, n, block_m, block_n, group_m)
        sums[:] = 0
        for rank in range(split_k):
            _load_scales(counter, scale_marks, column, block_n, n, scales)
            for step in range(rank * steps // split_k, (rank + 1) * steps // split_k):
                at = step * BLOCK_K
                for box in range(0, BLOCK_K, BOX_K):
                    load_tile(counter, x_marks, x, m, k, row, at + box, x_tile[:, box : box + BOX_K], BF16)
                if group == 0:
                    load_tile(counter, w_marks, w, n, k, column, at, w_tile.T, FP8)
                    mma(counter, sums[rank], x_tile, w_tile, m - row, n - column, k - at, numerics)
                    continue
                _load_groups(
                    counter, w_marks, scale_marks, integers, w_tile, column, at, group, packed_rows, packed_bytes,
                    packed_halves, numerics,
                )  # fmt: skip
                for first in range(0, BLOCK_K, group):
                    _add_group(
                        counter, sums[rank], x_tile[:, first : first + group], w_tile[first : first + group],
                        scale, offset, m - row, n - column, k - at - first, column, (at + first) // group,
                        zero_points, numerics,
                    )  # fmt: skip
        for rank in range(split_k):
            first = rank * part
            for i in range(part):
                for j in range(min(block_n, n - column)):
                    total = sums[rank, first + i, j]
                    for distance in range(1, split_k):
                        total += sums[(rank + distance) % split_k, first + i, j]
                    own[i, j] = total * row_scales[column + j]
            for c in range(0, block_n, MMA_M):
                store_tile(counter, y_marks, y, m, n, row + first, column + c, own[:, c : c + MMA_M], BF16)


@njit(cache=True)
def _load_scales(count, marks, column, block_n, n, scales):
    """A CTA's scales of fp8: `scales` is 0 for none, 1 for one, which every warp reads, 2 for one of each row."""
    for r in range(column, column + block_n, SCALE_ROWS):
        if scales == 2 and r < n:
            load_lanes(count, marks, FLOAT * r, FLOAT, FLOAT, SCALE_ROWS, 0, 1)
        if scales == 1 and r % ROWS == 0:
            load_lanes(count, marks, 0, 0, FLOAT, SCALE_ROWS, 0, 1)


@njit(cache=True)
def _load_groups(
    count, w_marks, scale_marks, integers, w_tile, column, at, group, packed_rows, packed_bytes, packed_halves, numerics
):
    """A step of packed weights, 1,024 bytes of every 16 rows, and its scales and offsets, 32 halves of every group."""
    boxes = w_tile.shape[1] // ROWS
    nbytes, halves = ROWS * BLOCK_K // 2, 2 * ROWS * (BLOCK_K // group)
    tile = np.empty((boxes, nbytes), np.float32)
    load_tile(
        count, w_marks, np.empty((0, 0), np.uint8), packed_rows, packed_bytes, column // ROWS, at // BLOCK_K * nbytes,
        tile, FP8,
    )  # fmt: skip
    load_tile(
        count, scale_marks, np.empty((0, 0), np.uint16), packed_rows, packed_halves, column // ROWS,
        at // BLOCK_K * halves, tile[:, :halves], FP16,
    )  # fmt: skip
    if numerics:
        w_tile[:] = 0
        for r in range(min(w_tile.shape[1], integers.shape[0] - column)):
            for c in range(min(BLOCK_K, integers.shape[1] - at)):
                w_tile[c, r] = integers[column + r, at + c]


@njit(cache=True)
def _add_group(count, total, x, w, scale, offset, rows, columns, depth, first, index, zero_points, numerics):
    """total += scale (x w) of a group, and where it has no zero points + (offset - bias scale) (sum of x).

    All products but the one with scale are the tensor cores'. A sum is there in three parts, each what is left of it:
    of an infinite one nothing is, inf - inf.
    """
    x = np.ascontiguousarray(x)
    partial = np.zeros(total.shape, np.float32)
    mma(count, partial, x, w, rows, columns, depth, numerics)
    within = min(total.shape[1], columns) if numerics and index < scale.shape[1] else 0
    if not zero_points:
        sums = np.zeros((total.shape[0], SUM_COLUMNS), np.float32)
        mma(count, sums, x, np.ones((x.shape[1], SUM_COLUMNS), np.float32), 0, 0, 0, numerics)
        offsets = np.zeros((SUM_COLUMNS, total.shape[1]), np.float32)
        for i in range(sums.shape[0]):
            sums[i, 1] = sums[i, 0] * np.float32(-int4.BIAS)
            sums[i, 2] = sums[i, 0] - sums[i, 0]
            sums[i, 3:] = 0  # on the chip they hold more of the digits, and are exact
        for j in range(within):
            offsets[0, j] = offset[first + j, index]
            offsets[1, j] = scale[first + j, index]
        mma(count, total, sums, offsets, 0, 0, 0, numerics)
    for j in range(within):
        for i in range(total.shape[0]):
            total[i, j] += scale[first + j, index] * partial[i, j]
