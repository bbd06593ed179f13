"""A warp a row of w, lanes side by side along k: a request is 64 contiguous bytes, all of them useful."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Bills, Solves, require_choice
from lab.kernels.common.warp_per_output import load_row, request_sectors
from lab.kernels.gemv import dot_product
from lab.kernels.gemv.dot_product import ELEMENT, LANES
from lab.problems import Linear
from sim.counts import Counts
from sim.formats import encode
from sim.jit import njit
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import SimulatedChip, count_fma, dot, store_vector

SOLVES = Solves(Linear, formats=("bf16", "fp16"), arch="sm_80", after="gemv_naive")


@dataclass(frozen=True)
class Schedule:
    """Rows of w by warp."""

    warps: int  # of a CTA, one for each row of w

    def __post_init__(self) -> None:
        require_choice(self, "warps", (1, 2, 4, 8, 16, 32))

    @property
    def threads(self) -> int:
        return LANES * self.warps

    def fits(self, problem: Linear, machine: Machine) -> None:
        dot_product.require_tokens(problem, machine)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """As many warps as an SM holds, in CTAs small enough that all SMs get some."""
    yield from (Schedule(warps) for warps in (8, 4, 16, 2))


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """A warp asks for 32 elements of its row at a time: its time is waiting."""
    p = problem
    return dot_product.waiting_bills("gemv_coalesced", p, p.m * p.n, -(-p.k // LANES), 1, machine, clock)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return dot_product.launch("gemv_coalesced", problem, schedule, -(-problem.n // schedule.warps))


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """A warp requests a row of x and a row of w, and stores one sector. x leans on L1."""
    p = problem
    w, x = p.m * request_sectors(p.n, p.k, ELEMENT), p.n * request_sectors(p.m, p.k, ELEMENT)
    return dot_product.counts(p, loads=w + x, stores=p.m * p.n)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    x, w = dot_product.operands(p, arrays)
    sums = np.zeros((p.m, p.n) if arrays else (0, 0), np.float32)
    marks = [chip.marks(name) for name in ("x", "w", "y")]
    chip.on_all_cores(_grid, chip.count, *marks, x, w, sums, p.n, p.k, launch.grid[0], p.m, s.warps)
    if arrays:
        arrays["y"][...] = encode(sums, p.output)
    return chip.counts()


@njit(cache=True, nogil=True)
def _grid(core, cores, count, x_marks, w_marks, y_marks, x, w, sums, n, k, grid_x, tokens, warps):
    sms = count.shape[0]
    for sm in range(core, sms, cores):
        for cta in range(sm, grid_x * tokens, sms):
            token, first = cta // grid_x, cta % grid_x * warps
            for row in range(first, min(first + warps, n)):
                load_row(count[sm], x_marks, token, k, ELEMENT)
                load_row(count[sm], w_marks, row, k, ELEMENT)
                count_fma(count[sm], k)
                if sums.size > 0:
                    sums[token, row] = dot(x, w, token, row, 0, k)
                store_vector(count[sm], y_marks, ELEMENT * (token * n + row), ELEMENT)
