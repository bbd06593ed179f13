"""A patch of outputs a thread: outer products in registers ask shared memory for a quarter as much."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from lab.kernel import RANKING_CLOCK, Bills, Solves
from lab.kernels.gemm import simt_tile
from lab.kernels.gemm.simt_tile import BLOCK_K, PATCHES, ROW, PatchSchedule
from lab.problems import Linear
from sim.counts import Counts
from sim.launch import Launch
from sim.machine import Machine

SOLVES = Solves(Linear, formats=("fp32",), arch="sm_80", after="gemm_register_tile_1d")


@dataclass(frozen=True)
class Schedule(PatchSchedule):
    """A tile of y for each CTA, a patch of it for each thread."""

    @property
    def pitch(self) -> int:
        """Floats from a row of a tile to the next: odd, so that neighbouring rows begin in different banks."""
        return BLOCK_K + 1


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """By predicted time."""
    schedules = (Schedule(*shape) for shape in PATCHES)
    yield from sorted(schedules, key=lambda schedule: bills(problem, schedule, machine, RANKING_CLOCK).us)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return simt_tile.launch("gemm_register_tile_2d", problem, schedule)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    return simt_tile.tiled_theory(problem, schedule, ROW, schedule.store())


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """As simt_tile.bills; an element on its way to shared memory is nine instructions."""
    s = schedule
    other = 9 * (s.block_m + s.block_n) / s.threads
    counts = theory(problem, s, machine)
    return simt_tile.bills(problem, s, counts, machine, clock, s.thread_m, s.thread_n, 1, other)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return simt_tile.simulate_tiles(launch, arrays, machine, ROW, launch.schedule.store())
