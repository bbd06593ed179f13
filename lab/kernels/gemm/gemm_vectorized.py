"""16 bytes a load, from global and from shared memory: a vector is four k of one row, nothing is transposed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from lab.kernel import RANKING_CLOCK, Bills, Solves
from lab.kernels.gemm import simt_tile
from lab.kernels.gemm.simt_tile import BLOCK_K, PATCHES, VECTOR, PatchSchedule, vectors
from lab.problems import Linear
from sim.counts import Counts
from sim.launch import Launch
from sim.machine import Machine

SOLVES = Solves(
    Linear,
    formats=("fp32",),
    arch="sm_80",
    multiple_of={"k": 4},
    why_multiple="rows are read in 16-byte vectors",
    after="gemm_register_tile_2d",
)


@dataclass(frozen=True)
class Schedule(PatchSchedule):
    """A tile of y for each CTA, a patch of it for each thread."""

    def __post_init__(self) -> None:
        super().__post_init__()
        simt_tile.require_rows(self, vectors(BLOCK_K))

    @property
    def pitch(self) -> int:
        """Floats from a row of a tile to the next: eight neighbouring rows' vectors lie in different banks."""
        return BLOCK_K + VECTOR


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """By predicted time."""
    schedules = (Schedule(*shape) for shape in PATCHES)
    yield from sorted(schedules, key=lambda schedule: bills(problem, schedule, machine, RANKING_CLOCK).us)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return simt_tile.launch("gemm_vectorized", problem, schedule)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    return simt_tile.tiled_theory(problem, schedule, vectors(BLOCK_K), schedule.store())


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """As simt_tile.bills; a vector on its way to shared memory is nine instructions.

    x and w of one k lie in the same bank of registers, which costs a fifth of a clock for each multiply-add: from its
    machine code at 8 x 8, where each bank serves a read a clock and an instruction's reads have three clocks (Huerta et
    al., Analyzing Modern NVIDIA GPU cores, 2025, section 5.3).
    """
    s = schedule
    other = 9 / VECTOR * (s.block_m + s.block_n) / s.threads + s.thread_m * s.thread_n / 5
    counts = theory(problem, s, machine)
    return simt_tile.bills(problem, s, counts, machine, clock, s.thread_m, s.thread_n, VECTOR, other)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return simt_tile.simulate_tiles(launch, arrays, machine, vectors(BLOCK_K), launch.schedule.store())
