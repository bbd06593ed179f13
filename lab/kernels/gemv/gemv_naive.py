"""One thread a row of w, two bytes at a time, uncoalesced: what a matrix-vector product costs without care."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Bills, Solves, require_choice
from lab.kernels.common import thread_per_output
from lab.kernels.common.thread_per_output import LANES, warp
from lab.kernels.gemv import dot_product
from lab.problems import Linear
from sim.counts import Counts
from sim.formats import encode
from sim.jit import njit
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import SimulatedChip

SOLVES = Solves(Linear, formats=("bf16",), arch="sm_80")

BF16 = 2  # bytes


@dataclass(frozen=True)
class Schedule:
    """Rows of w by thread."""

    threads: int  # of a CTA, one for each row of w

    def __post_init__(self) -> None:
        require_choice(self, "threads", (32, 64, 128, 256, 512, 1024))

    def fits(self, problem: Linear, machine: Machine) -> None:
        dot_product.require_tokens(problem, machine)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Small CTAs first: rows are few, and every SM should have some."""
    yield from (Schedule(threads) for threads in (32, 64, 128, 256))


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """A thread asks for the elements of its row one by one: its time is waiting."""
    p = problem
    return dot_product.waiting_bills("gemv_naive", p, p.m * -(-p.n // LANES), p.k, LANES, machine, clock)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return dot_product.launch("gemv_naive", problem, schedule, -(-problem.n // schedule.threads))


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    return thread_per_output.theory(problem)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    nothing = np.zeros((0, 0), np.uint16)
    x, w = (arrays[name] if arrays else nothing for name in ("x", "w"))
    sums = np.zeros((p.m, p.n) if arrays else (0, 0), np.float32)
    marks = [chip.marks(name) for name in ("x", "w", "y")]
    chip.on_all_cores(_grid, chip.count, *marks, x, w, sums, p.n, p.k, launch.grid[0], launch.grid[1], s.threads)
    if arrays:
        arrays["y"][...] = encode(sums, p.output)
    return chip.counts()


@njit(cache=True, nogil=True)
def _grid(core, cores, count, x_marks, w_marks, y_marks, x, w, sums, n, k, grid_x, tokens, threads):
    sms = count.shape[0]
    for sm in range(core, sms, cores):
        for cta in range(sm, grid_x * tokens, sms):
            token, first = cta // grid_x, cta % grid_x * threads
            for row in range(first, min(first + threads, n), LANES):
                warp(count[sm], x_marks, w_marks, y_marks, x, w, sums, n, k, token, row, BF16, sums.size > 0)
