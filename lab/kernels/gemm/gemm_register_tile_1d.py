"""A column of outputs a thread: what it reads of w serves them all from a register, and tiles grow."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from lab.kernel import RANKING_CLOCK, Bills, Solves, require_choice
from lab.kernels.gemm import simt_tile
from lab.kernels.gemm.simt_tile import BLOCK_K, ROW, RowByRow
from lab.problems import Linear
from sim.counts import Counts
from sim.launch import Launch
from sim.machine import Machine

SOLVES = Solves(Linear, formats=("fp32",), arch="sm_80", after="gemm_shared_tile")


@dataclass(frozen=True)
class Schedule(RowByRow):
    """The tile of y that a CTA computes, and how much of it a thread."""

    block_m: int  # rows of y
    block_n: int  # columns of y, neighbouring lanes side by side
    thread_m: int  # rows that a thread owns of one column

    def __post_init__(self) -> None:
        require_choice(self, "block_m", (32, 64, 128))
        require_choice(self, "block_n", (32, 64, 128))
        require_choice(self, "thread_m", (2, 4, 8, 16, 32))
        simt_tile.require_warps(self)
        simt_tile.require_rows(self, ROW)

    @property
    def pitch(self) -> int:
        """Floats from a row of a tile to the next: odd, so that neighbouring rows begin in different banks."""
        return BLOCK_K + 1

    @property
    def threads(self) -> int:
        return self.block_m // self.thread_m * self.block_n


SHAPES = ((64, 64, 8), (128, 64, 16), (64, 64, 16), (128, 64, 8), (32, 64, 8), (32, 32, 4))


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """By predicted time."""
    schedules = (Schedule(*shape) for shape in SHAPES)
    yield from sorted(schedules, key=lambda schedule: bills(problem, schedule, machine, RANKING_CLOCK).us)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return simt_tile.launch("gemm_register_tile_1d", problem, schedule)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    return simt_tile.tiled_theory(problem, schedule, ROW, ROW)


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    counts = theory(problem, schedule, machine)
    return simt_tile.bills(problem, schedule, counts, machine, clock, schedule.thread_m, 1, 1)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return simt_tile.simulate_tiles(launch, arrays, machine, ROW, ROW)
