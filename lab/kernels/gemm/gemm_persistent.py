"""As many CTAs as SMs, each taking tile after tile: loads and stores overlap the neighbouring tiles' work."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from lab.kernel import RANKING_CLOCK, Bills, Solves, require_choice, require_shared
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
    after="gemm_warp_specialized",
    facts=FACTS,
)


@dataclass(frozen=True)
class Schedule(RoleTiling):
    """The tile of a CTA, half of its rows in each consumer, its ring, its epilogue's buffers."""

    y_boxes: int  # 64 rows of 128 bytes of y that each consumer stages for the stores
    group_m: int  # tile rows walked together, so that x and w are shared in L2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "y_boxes", (1, 2, 3, 4))

    @property
    def y_bytes(self) -> int:
        return self.y_boxes * Y_BOX

    def fits(self, problem: Linear, machine: Machine) -> None:
        require_shared(self.shared_bytes, f"{self.stages} stages and {self.y_boxes} boxes", machine)


SHAPES = (  # m, n, stages, boxes of y
    (128, 256, 4, 2),
    (256, 128, 4, 2),
    (128, 224, 4, 2),
    (128, 192, 4, 3),
    (128, 160, 5, 2),
    (128, 128, 6, 2),
    (128, 64, 8, 1),
)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Tile shapes by predicted time, each with the raster that shares most in a wave and with rows of tiles alone."""
    schedules = []
    for shape in SHAPES:
        best = wgmma_model.best_group(machine.sms, *shape[:2])
        schedules += [Schedule(*shape, group_m) for group_m in (best, 1)]
    yield from sorted(schedules, key=lambda s: (s.group_m == 1, bills(problem, s, machine, RANKING_CLOCK).us))


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    tiles = wgmma_mainloop.tile_count(problem, schedule.block_m, schedule.block_n)
    return wgmma_mainloop.launch("gemm_persistent", problem, schedule, min(tiles, machine.sms))


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    return wgmma_mainloop.theory(problem, schedule)


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    s, model = schedule, wgmma_model.coefficients(machine, clock)
    between = model.tile_clocks + wgmma_model.epilogue_clocks(problem, s.block_m, s.block_n, model)
    return wgmma_model.tiled_bills(problem, s.block_m, s.block_n, 1, between, machine, model)


requested = wgmma_mainloop.requested


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return wgmma_mainloop.simulate(launch, arrays, machine)
