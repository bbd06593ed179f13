"""Lanes side by side along k: every request is 128 contiguous bytes, and x is fetched once for 32 columns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Solves, require_choice
from lab.kernels.gemm import _simt
from lab.kernels.gemm._simt import FLOAT, LANES, ROW
from lab.kernels.gemm._tiles import tile_at, tiles_of
from lab.problems import Linear
from sim.counts import Counts
from sim.jit import njit, prange
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import Chip, count_fma, dot, load_lanes, load_vector, store_vector

SOLVES = Solves(Linear, weights=("fp32",), arch="sm_80", after="gemm_naive")


@dataclass(frozen=True)
class Schedule:
    """The patch of y that a CTA computes: a warp for each row, 32 columns."""

    block_m: int  # rows of y, which share their rows of w in L1

    def __post_init__(self) -> None:
        require_choice(self, "block_m", (1, 2, 4, 8, 16, 32))

    @property
    def block_n(self) -> int:
        return LANES

    @property
    def threads(self) -> int:
        return LANES * self.block_m

    def fits(self, problem: Linear, machine: Machine) -> None:
        pass


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """As many rows as there are, up to those of two CTAs an SM."""
    yield from sorted(map(Schedule, (32, 16, 8, 4, 2, 1)), key=lambda s: s.block_m >= 2 * problem.m)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return _simt.launch("gemm_coalesced", problem, schedule)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """Each row of y requests all of w, each 32 columns all of x. It leans on L1, which serves the rows of a CTA."""
    p = problem
    x = tiles_of(p.n, LANES) * _simt.patch_sectors(p.m, p.k, ROW)
    w = p.m * _simt.patch_sectors(p.n, p.k, ROW)
    return _simt.theory(p, x, w, _simt.patch_sectors(p.m, p.n, ROW))


def simulate(launch: Launch, arrays: Mapping[str, NDArray] | None, machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = Chip(launch, machine)
    nothing = np.zeros((0, 0), np.float32)
    operands = [arrays[name] if arrays else nothing for name in ("x", "w", "y")]
    marks = [chip.marks(name) for name in ("x", "w", "y")]
    _grid(chip.count, *marks, *operands, p.m, p.n, p.k, launch.grid[0], s.block_m)
    return chip.counts()


@njit(cache=True)
def _load_row(count, marks, row, k):
    """A row of x or w: one request for each 32 of its elements."""
    whole, rest = k // LANES, k % LANES
    if whole > 0:
        load_lanes(count, marks, FLOAT * row * k, 0, FLOAT * LANES, 1, FLOAT * LANES, whole)
    load_vector(count, marks, FLOAT * (row * k + whole * LANES), FLOAT * rest)


@njit(cache=True, parallel=True)
def _grid(count, x_marks, w_marks, y_marks, x, w, y, m, n, k, tiles, block_m):
    sms = count.shape[0]
    for sm in prange(sms):
        for cta in range(sm, tiles, sms):
            top, left = tile_at(cta, m, n, block_m, LANES, 1)
            right = min(left + LANES, n)
            for row in range(top, min(top + block_m, m)):
                _load_row(count[sm], x_marks, row, k)
                for column in range(left, right):
                    _load_row(count[sm], w_marks, column, k)
                    if y.size > 0:
                        y[row, column] = dot(x, w, row, column, 0, k)
                count_fma(count[sm], (right - left) * k)
                store_vector(count[sm], y_marks, FLOAT * (row * n + left), FLOAT * (right - left))
