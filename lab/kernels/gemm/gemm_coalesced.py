"""A warp an output, lanes side by side along k: a request is 128 contiguous bytes, all of them useful."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Bills, Solves, require_choice
from lab.kernels.common.raster import tile_at
from lab.kernels.common.warp_per_output import load_row
from lab.kernels.gemm import simt_tile
from lab.kernels.gemm.simt_tile import FLOAT, LANES, ROW, RowByRow
from lab.problems import Linear
from sim.counts import Counts
from sim.jit import njit
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import SimulatedChip, count_fma, dot, store_vector

SOLVES = Solves(Linear, formats=("fp32",), arch="sm_80", after="gemm_naive")


@dataclass(frozen=True)
class Schedule(RowByRow):
    """The patch of y that a CTA computes, a warp for each element."""

    block_m: int  # rows of y, which share rows of w in L1
    block_n: int  # columns of y, which share rows of x in L1

    def __post_init__(self) -> None:
        require_choice(self, "block_m", (1, 2, 4, 8, 16, 32))
        require_choice(self, "block_n", (1, 2, 4, 8, 16, 32))
        simt_tile.require_warps(self)

    @property
    def threads(self) -> int:
        return LANES * self.block_m * self.block_n


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Square patches first, whose warps share most in L1; one row first where there is one."""
    shapes = ((4, 8), (8, 4), (2, 8), (1, 32))
    yield from (Schedule(*shape) for shape in (reversed(shapes) if problem.m == 1 else shapes))


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return simt_tile.launch("gemm_coalesced", problem, schedule)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """Each output requests a row of x and a row of w, and stores one sector. Loads lean on L1."""
    p = problem
    x, w = p.n * simt_tile.patch_sectors(p.m, p.k, ROW), p.m * simt_tile.patch_sectors(p.n, p.k, ROW)
    return simt_tile.theory(p, x, w, p.m * p.n)


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    counts = theory(problem, schedule, machine)
    return simt_tile.bills(problem, schedule, counts, machine, clock, 1, 1, 1)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    nothing = np.zeros((0, 0), np.float32)
    operands = [arrays[name] if arrays else nothing for name in ("x", "w", "y")]
    marks = [chip.marks(name) for name in ("x", "w", "y")]
    chip.on_all_cores(_grid, chip.count, *marks, *operands, p.m, p.n, p.k, launch.grid[0], s.block_m, s.block_n)
    return chip.counts()


@njit(cache=True, nogil=True)
def _grid(core, cores, count, x_marks, w_marks, y_marks, x, w, y, m, n, k, tiles, block_m, block_n):
    sms = count.shape[0]
    for sm in range(core, sms, cores):
        for cta in range(sm, tiles, sms):
            top, left = tile_at(cta, m, n, block_m, block_n, 1)
            for row in range(top, min(top + block_m, m)):
                for column in range(left, min(left + block_n, n)):
                    load_row(count[sm], x_marks, row, k, FLOAT)
                    load_row(count[sm], w_marks, column, k, FLOAT)
                    count_fma(count[sm], k)
                    if y.size > 0:
                        y[row, column] = dot(x, w, row, column, 0, k)
                    store_vector(count[sm], y_marks, FLOAT * (row * n + column), FLOAT)
