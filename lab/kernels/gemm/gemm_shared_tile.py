"""Tiles of x and w in shared memory, one output a thread: reuse that does not depend on what L1 happens to keep."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from lab.kernel import Bills, Solves, require_choice
from lab.kernels.gemm import simt_tile
from lab.kernels.gemm.simt_tile import BLOCK_K, LANES, ROW, RowByRow
from lab.problems import Linear
from sim.counts import Counts
from sim.launch import Launch
from sim.machine import Machine

SOLVES = Solves(Linear, formats=("fp32",), arch="sm_80", after="gemm_coalesced")


@dataclass(frozen=True)
class Schedule(RowByRow):
    """The tile of y that a CTA computes, one thread an output: a warp for each row, 32 columns."""

    block_m: int  # rows of y

    def __post_init__(self) -> None:
        require_choice(self, "block_m", (4, 8, 16, 32))

    @property
    def block_n(self) -> int:
        return LANES

    @property
    def pitch(self) -> int:
        """Floats from a row of a tile to the next: odd, so that neighbouring rows begin in different banks."""
        return BLOCK_K + 1

    @property
    def threads(self) -> int:
        return self.block_m * self.block_n


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Tall tiles first, which load w least often, unless most of their rows would be empty."""
    yield from sorted(map(Schedule, (32, 16, 8, 4)), key=lambda schedule: schedule.block_m >= 2 * problem.m)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return simt_tile.launch("gemm_shared_tile", problem, schedule)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    return simt_tile.tiled_theory(problem, schedule, ROW, ROW)


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    counts = theory(problem, schedule, machine)
    return simt_tile.bills(problem, schedule, counts, machine, clock, 1, 1, 1)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return simt_tile.simulate_tiles(launch, arrays, machine, ROW, ROW)
