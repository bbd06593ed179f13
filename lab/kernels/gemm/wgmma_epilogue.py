"""The epilogue of the wgmma GEMMs: sums become y, with scales, a residual or swiglu; counted and computed.

Scales and residual are ordinary loads of the accumulators' owners: a thread holds two neighbouring columns of a row and
of the row eight below, a warp sixteen rows. Warps ask for the same scales again and again and lean on L1.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.problems import Linear
from sim.counts import SECTOR, Counts, sectors
from sim.formats import decode
from sim.jit import njit
from sim.tiles import SimulatedChip, count_exp, load_lanes

MMA_M = 64  # rows of a box
GROUP = 8  # rows and columns of a warp's request
FLOAT = 4  # bytes of a scale
WARPS = 8  # that multiply and store, in a CTA
BLOCK = 128  # along k, and of rows of w, that share a scale
LOADED = 4  # blocks along k whose scales a warp asks for at once


class Operands(NamedTuple):
    """What the epilogue reads besides the sums; empty arrays where a problem has no such operand."""

    x_scale: NDArray[np.float32]
    w_scale: NDArray[np.float32]
    x_block_scale: NDArray[np.float32]
    w_block_scale: NDArray[np.float32]
    residual: NDArray[np.float32]
    inverse_y_scale: np.float32
    x_scale_marks: NDArray[np.uint8]
    w_scale_marks: NDArray[np.uint8]
    residual_marks: NDArray[np.uint8]
    m: int
    columns: int
    residual_bytes: int  # of an element
    blocks: int  # along k
    block: int  # columns of a part, whose blocks of scales every step reads; 0 where blocks have none
    row_scales: bool
    x_row_scales: bool
    swiglu: bool
    has_residual: bool


def operands(problem: Linear, chip: SimulatedChip, arrays: Mapping[str, NDArray], part: int = 0) -> Operands:
    """Scales for every row, or for parts of `part` columns step by step, and the residual as floats."""
    p = problem
    given = dict(arrays) if arrays else {}
    one, empty = np.ones(1, np.float32), np.zeros((0, 0), np.float32)
    x_scale, w_scale = (one if p.block_scales else given.get(name, one) for name in ("x_scale", "w_scale"))
    x_block, w_block = (given.get(name, empty) if p.block_scales else empty for name in ("x_scale", "w_scale"))

    def marks(name: str) -> NDArray[np.uint8]:
        return chip.marks(name) if name in p.inputs else np.zeros(0, np.uint8)

    return Operands(
        x_scale=np.broadcast_to(x_scale, p.m).copy(),
        w_scale=np.broadcast_to(w_scale, p.n).copy(),
        x_block_scale=x_block,
        w_block_scale=w_block,
        residual=decode(given["residual"], p.inputs["residual"].format) if p.residual and given else empty,
        inverse_y_scale=(1 / given.get("y_scale", one))[0],
        x_scale_marks=marks("x_scale"),
        w_scale_marks=marks("w_scale"),
        residual_marks=marks("residual"),
        m=p.m,
        columns=p.columns,
        residual_bytes=_residual_bytes(p),
        blocks=-(-p.k // BLOCK),
        block=part if p.block_scales else 0,
        row_scales=p.row_scales,
        x_row_scales=p.x_row_scales,
        swiglu=p.swiglu,
        has_residual=p.residual,
    )


def theory(problem: Linear, mainloop: Counts, rows: int, columns: int, box: int, ctas: int) -> Counts:
    """A kernel's counts with those of its epilogue; `rows` x `columns` are y's, rounded up to whole tiles.

    A warp asks for a sector of x_scale for every eight rows of a box, of w_scale for every eight columns of its sixteen
    rows, of the residual for every row of eight columns; for the scales of whole tensors once.
    """
    p = problem
    loads = 0
    if p.x_row_scales:
        loads += columns // box * -(-p.m // GROUP)
    if p.row_scales:
        loads += rows // 16 * (p.n // GROUP)
    loads += WARPS * ctas * len(_tensor_scales(p))
    if p.residual:
        if p.columns > GROUP:
            loads += p.m * p.columns // GROUP
        else:
            row = _residual_bytes(p) * p.columns
            loads += sum(sectors(row * r, row * min(GROUP, p.m - r)) for r in range(0, p.m, GROUP))
    added = Counts(
        **{name: 0 for name, value in mainloop.as_dict().items() if value is not None}
        | {
            "exp_count": rows * columns if p.swiglu else 0,
            "global_load_sectors": loads,
            "l2_to_sm_bytes": SECTOR * loads,
        }
    )
    return mainloop + added


def _residual_bytes(problem: Linear) -> int:
    return 4 if problem.output == "fp32" else 2


def _tensor_scales(problem: Linear) -> list[str]:
    """The scales that are one for a whole tensor."""
    p = problem
    one = p.scaled and not p.block_scales
    every = {
        "x_scale": one and not p.x_row_scales,
        "w_scale": one and not p.row_scales,
        "y_scale": "y_scale" in p.inputs,
    }
    return [name for name, found in every.items() if found]


def count_tensor_scales(problem: Linear, chip: SimulatedChip, ctas: int) -> None:
    """Every warp reads the scales of whole tensors once."""
    for name in _tensor_scales(problem):
        for cta in range(ctas):
            for _ in range(WARPS):
                load_lanes(chip.count[cta], chip.marks(name), 0, 0, FLOAT, 32, 0, 1)


def block_theory(problem: Linear, block_n: int, part: int, tiles_m: int) -> Counts:
    """What scales of blocks add: every four steps a warp asks for those of eight rows of x, and of each part of w.

    Eight rows of scales are whole sectors, so all groups of eight lie alike.
    """
    p = problem
    blocks, tiles_n = -(-p.k // BLOCK), -(-p.n // block_n)
    pitch = FLOAT * blocks
    runs = [(FLOAT * at, FLOAT * min(LOADED, blocks - at)) for at in range(0, blocks, LOADED)]

    def of_rows(rows: int) -> int:
        asked = 0
        for start, nbytes in runs:
            ends = [(pitch * row + start, pitch * row + start + nbytes - 1) for row in range(rows)]
            asked += len({sector for first, last in ends for sector in range(first // SECTOR, last // SECTOR + 1)})
        return asked

    of_x = p.m // GROUP * of_rows(GROUP) + of_rows(p.m % GROUP)
    of_w = sum(sectors(pitch * (c // BLOCK) + start, nbytes) for c in range(0, p.n, part) for start, nbytes in runs)
    loads = tiles_n * of_x + tiles_m * WARPS * of_w
    return Counts(0, 0, 0, loads, 0, 0, SECTOR * loads, 0, 0, 0)


@njit(cache=True)
def scale_step(count, operands, x_tile, w_tile, row, column, block, numerics):
    """Scale a step's tiles of x and of w, that transposed, by the scales of its blocks; counts what warps load."""
    o = operands
    pitch = FLOAT * o.blocks
    nbytes = FLOAT * min(LOADED, o.blocks - block) if block % LOADED == 0 else 0
    for g in range(0, x_tile.shape[0], GROUP):
        lanes = min(GROUP, o.m - row - g)
        if lanes > 0 and nbytes > 0:
            load_lanes(count, o.x_scale_marks, pitch * (row + g) + FLOAT * block, pitch, nbytes, lanes, 0, 1)
    for c in range(0, w_tile.shape[1], o.block):
        if column + c < o.columns and nbytes > 0:
            for _ in range(WARPS):
                start = pitch * ((column + c) // BLOCK) + FLOAT * block
                load_lanes(count, o.w_scale_marks, start, 0, nbytes, 1, 0, 1)
    if numerics:
        for r in range(min(x_tile.shape[0], o.m - row)):
            x_tile[r] *= o.x_block_scale[row + r, block]
        for c in range(min(w_tile.shape[1], o.columns - column)):
            w_tile[:, c] *= o.w_block_scale[(column + c) // BLOCK, block]


@njit(cache=True)
def finish(count, operands, total, r, c, box, row, column, numerics):
    """The box of y at (r, c) of a tile whose first row and column are given, as floats; counts what its warps load."""
    o = operands
    halves = total.shape[1] // (2 if o.swiglu else 1)
    for g in range(r, r + MMA_M, GROUP):
        lanes = min(GROUP, o.m - row - g)
        if o.x_row_scales and lanes > 0:
            load_lanes(count, o.x_scale_marks, FLOAT * (row + g), FLOAT, FLOAT, lanes, 0, 1)
        for at in range(column + c, min(column + c + box, o.columns), GROUP):
            if o.row_scales and g % (2 * GROUP) == 0:
                load_lanes(count, o.w_scale_marks, FLOAT * at, 2 * FLOAT, 2 * FLOAT, GROUP // 2, 0, 1)
                if o.swiglu:
                    load_lanes(count, o.w_scale_marks, FLOAT * (o.columns + at), 2 * FLOAT, 2 * FLOAT, GROUP // 2, 0, 1)
            if o.has_residual and lanes > 0:
                pitch = o.residual_bytes * o.columns
                start = pitch * (row + g) + o.residual_bytes * at
                load_lanes(count, o.residual_marks, start, pitch, GROUP * o.residual_bytes, lanes, 0, 1)
    if o.swiglu:
        count_exp(count, MMA_M * box)
    if not numerics:
        return total[r : r + MMA_M, c : c + box]
    y = np.zeros((MMA_M, box), np.float32)
    for i in range(min(MMA_M, o.m - row - r)):
        for j in range(min(box, o.columns - column - c)):
            at_row, at = row + r + i, column + c + j
            value = total[r + i, c + j] * (o.x_scale[at_row] * o.w_scale[at])
            if o.swiglu:
                up = total[r + i, halves + c + j] * (o.x_scale[at_row] * o.w_scale[o.columns + at])
                value = value / (np.float32(1) + np.exp(-value)) * up
            if o.has_residual:
                value += o.residual[at_row, at]
            y[i, j] = value * o.inverse_y_scale
    return y
