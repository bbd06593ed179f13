"""One warpgroup loads, two multiply: no warp that multiplies waits to refill, and they hold a larger tile."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from lab.kernel import RANKING_CLOCK, Bills, Solves, require_shared
from lab.kernels.gemm import wgmma_mainloop, wgmma_model
from lab.kernels.gemm.warp_roles import Y_BOX, RoleTiling
from lab.kernels.gemm.wgmma_mainloop import FACTS
from lab.problems import Linear
from sim.counts import Counts
from sim.launch import Launch
from sim.machine import Machine

SOLVES = Solves(
    Linear,
    formats=("bf16", "fp16"),
    arch="sm_90a",
    row_bytes=16,
    why_multiple="TMA needs rows that are multiples of 16 bytes",
    after="gemm_wgmma",
    facts=FACTS,
)


@dataclass(frozen=True)
class Schedule(RoleTiling):
    """The tile of a CTA, half of its rows in each consumer, and its ring."""

    group_m: int  # tile rows walked together, so that x and w are shared in L2

    @property
    def y_bytes(self) -> int:
        """Two boxes of y in each consumer: one is rounded while the other is stored."""
        return 2 * Y_BOX

    def fits(self, problem: Linear, machine: Machine) -> None:
        require_shared(self.shared_bytes, f"{self.stages} stages", machine)


SHAPES = ((128, 256, 4), (256, 128, 4), (128, 192, 4), (128, 160, 5), (128, 128, 6), (128, 64, 8))  # m, n, stages


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Tile shapes by predicted time, each with the raster that shares most in a wave and with rows of tiles alone."""
    schedules = []
    for shape in SHAPES:
        best = wgmma_model.best_group(machine.sms, *shape[:2])
        schedules += [Schedule(*shape, group_m) for group_m in (best, 1)]
    yield from sorted(schedules, key=lambda s: (s.group_m == 1, bills(problem, s, machine, RANKING_CLOCK).us))


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    tiles = wgmma_mainloop.tile_count(problem, schedule.block_m, schedule.block_n)
    return wgmma_mainloop.launch("gemm_warp_specialized", problem, schedule, tiles)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    return wgmma_mainloop.theory(problem, schedule)


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    s, model = schedule, wgmma_model.coefficients(machine, clock)
    between = model.restart_clocks + wgmma_model.epilogue_clocks(problem, s.block_m, s.block_n, model)
    return wgmma_model.tiled_bills(problem, s.block_m, s.block_n, 1, between, machine, model)


requested = wgmma_mainloop.requested


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return wgmma_mainloop.simulate(launch, arrays, machine)
