"""TMA brings keys and values as wgmma reads them, and warpgroups multiply from shared memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from lab.kernel import Bills, Solves
from lab.kernels.attention import prefill, prefill_simulation, prefill_theory
from lab.problems import Attention
from sim.counts import Counts
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import SimulatedChip

SOLVES = Solves(
    Attention,
    formats=("bf16", "fp16"),
    arch="sm_90a",
    after="attention_mma_sync",
    options=prefill.TILE_OPTIONS,
    facts=prefill.FACTS,
)


@dataclass(frozen=True)
class Schedule(prefill.TilePerCta, prefill.RingTiling):
    """The tile of a CTA and its rings."""

    @property
    def threads(self) -> int:
        """Consumers alone; the first warp also asks for the loads."""
        return prefill.WARPGROUP * self.consumers


SHAPES = ((128, 128, 2), (128, 64, 2), (192, 80, 2))  # rows, keys, stages


def candidates(problem: Attention, machine: Machine) -> Iterator[Schedule]:
    yield from prefill.fitting((Schedule(*shape) for shape in SHAPES), problem, machine)


def launch(problem: Attention, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return prefill.tile_launch("attention_wgmma", problem, schedule, prefill.arguments(problem, schedule))


def bills(problem: Attention, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    return prefill_theory.bills("attention_wgmma", problem, schedule, machine, clock)


def theory(problem: Attention, schedule: Schedule, machine: Machine) -> Counts:
    return prefill_theory.theory(problem, schedule)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    chip = SimulatedChip(launch, machine)
    prefill_simulation.simulate(launch, arrays, chip)
    return chip.counts()
