"""16-byte coalesced loads, several in flight, weights read once past L1: decode at the speed of HBM."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Solves, require_choice
from lab.kernels.gemv import _rows
from lab.problems import Linear
from sim.counts import Counts, row_sectors
from sim.errors import ScheduleError
from sim.formats import encode
from sim.jit import njit, prange
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import Chip, count_fma, dot, load_vector, store_vector

SOLVES = Solves(
    Linear,
    weights=("bf16", "fp16"),
    arch="sm_80",
    multiple_of={"k": 8},
    why_multiple="rows are read in 16-byte vectors",
    after="gemv_coalesced",
)

STEP = 256  # elements of a row that one warp request covers: 32 lanes x 16 bytes


@dataclass(frozen=True)
class Schedule:
    """Rows of w by team of warps."""

    rows: int  # rows of w that a warp accumulates at once
    split_k: int  # warps that share a row, each every split_k-th k-step
    teams: int  # such groups of warps in a CTA
    unroll: int  # k-steps whose loads are in flight together

    def __post_init__(self) -> None:
        require_choice(self, "rows", (1, 2, 4, 8))
        require_choice(self, "split_k", (1, 2, 4, 8, 16, 32))
        require_choice(self, "teams", (1, 2, 4, 8, 16, 32))
        require_choice(self, "unroll", (1, 2, 4, 8))
        if self.threads > 1024:
            raise ScheduleError(
                f"{self.teams} teams of {self.split_k} warps are {self.threads} threads; a block has 1024"
            )
        if self.rows * self.unroll > 16:
            raise ScheduleError(
                f"rows x unroll is {self.rows * self.unroll} vectors in flight a lane; registers hold 16"
            )

    @property
    def threads(self) -> int:
        return 32 * self.split_k * self.teams

    def fits(self, problem: Linear, machine: Machine) -> None:
        _rows.require_tokens(problem)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Four warps a row where a row is long: the sum of the loads of all warps then fills HBM's latency best."""
    long_rows = problem.k >= 4 * STEP
    shapes = ((1, 4, 2, 4), (1, 4, 1, 4), (1, 8, 1, 2), (2, 4, 2, 4), (1, 8, 2, 4), (4, 4, 1, 2), (1, 2, 2, 4))
    short = ((1, 1, 2, 4), (1, 1, 8, 4), (2, 1, 2, 4), (2, 2, 1, 2), (1, 1, 1, 1))
    for shape in shapes + short if long_rows else short:
        yield Schedule(*shape)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return _rows.launch("gemv_vectorized", problem, schedule, -(-problem.n // (schedule.rows * schedule.teams)))


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """w is requested m times, x once for every team; both in requests of 256 elements. x leans on L1."""
    p = problem
    steps = [(k0, min(STEP, p.k - k0)) for k0 in range(0, p.k, STEP)]
    w = p.m * sum(row_sectors(p.n, 2 * p.k, 2 * k0, 2 * width) for k0, width in steps)
    teams = -(-p.n // schedule.rows)
    x = teams * sum(row_sectors(p.m, 2 * p.k, 2 * k0, 2 * width) for k0, width in steps)
    y = sum(
        row_sectors(p.m, 2 * p.n, 2 * row, 2 * min(schedule.rows, p.n - row)) for row in range(0, p.n, schedule.rows)
    )
    return _rows.counts(p, loads=w + x, stores=y)


def simulate(launch: Launch, arrays: Mapping[str, NDArray] | None, machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = Chip(launch, machine)
    x, w = _rows.operands(p, arrays)
    sums = np.zeros((p.m, p.n) if arrays else (0, 0), np.float32)
    marks = [chip.marks(name) for name in ("x", "w", "y")]
    _grid(chip.count, *marks, x, w, sums, p.m, p.n, p.k, launch.grid[0], s.rows, s.split_k, s.teams, arrays is not None)
    if arrays:
        arrays["y"][...] = encode(sums, p.output)
    return chip.counts()


@njit(cache=True, parallel=True)
def _grid(count, x_marks, w_marks, y_marks, x, w, sums, m, n, k, grid_x, rows, split_k, teams, numerics):
    sms = count.shape[0]
    for sm in prange(sms):
        for cta in range(sm, grid_x * m, sms):
            token = cta // grid_x
            for team in range(teams):
                row0 = (cta % grid_x * teams + team) * rows
                if row0 >= n:
                    break
                last = min(row0 + rows, n)
                for warp in range(split_k):
                    for k0 in range(warp * STEP, k, split_k * STEP):
                        width = min(STEP, k - k0)
                        load_vector(count[sm], x_marks, 2 * (token * k + k0), 2 * width)
                        for row in range(row0, last):
                            load_vector(count[sm], w_marks, 2 * (row * k + k0), 2 * width)
                            if numerics:
                                sums[token, row] += dot(x, w, token, row, k0, width)
                            count_fma(count[sm], width)
                store_vector(count[sm], y_marks, 2 * (token * n + row0), 2 * (last - row0))
