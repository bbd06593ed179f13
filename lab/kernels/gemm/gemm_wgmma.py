"""TMA fills a ring of swizzled tiles in shared memory, wgmma reads them: prefill at the rate of the tensor cores."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from lab.kernel import RANKING_CLOCK, Bills, Solves, require_choice, require_resident, require_shared
from lab.kernels.common.raster import require_group
from lab.kernels.gemm import wgmma_mainloop, wgmma_model
from lab.kernels.gemm.wgmma_mainloop import FACTS, MMA_M, Tiling
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
    after="gemm_mma_sync",
    facts=FACTS,
)

OTHER_REGISTERS = 40  # a thread's registers beside its accumulators, at most


@dataclass(frozen=True)
class Schedule(Tiling):
    """The tile of a CTA, 64 rows for each warpgroup, and its ring."""

    ctas_per_sm: int  # CTAs that an SM holds at once; one computes while the other stores
    group_m: int  # tile rows walked together, so that x and w are shared in L2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "ctas_per_sm", (1, 2))
        require_group(self.group_m)

    @property
    def threads(self) -> int:
        return 2 * self.block_m

    @property
    def y_bytes(self) -> int:
        """All that a warpgroup rounds, in the place of the ring."""
        return MMA_M * self.block_n * 2

    @property
    def shared_bytes(self) -> int:
        return self.ring_bytes

    def fits(self, problem: Linear, machine: Machine) -> None:
        require_shared(self.shared_bytes, f"{self.stages} stages", machine)
        registers = self.block_n // 2 + OTHER_REGISTERS
        require_resident(self.ctas_per_sm, self.shared_bytes, self.threads, registers, machine)


SHAPES = (  # block_m, block_n, stages, CTAs an SM: fewest bytes loaded for each mma first
    (128, 256, 4, 1),
    (256, 128, 4, 1),
    (128, 128, 3, 2),
    (128, 192, 5, 1),
    (192, 128, 5, 1),
    (64, 256, 5, 1),
    (64, 128, 4, 2),
    (64, 64, 6, 2),
    (128, 64, 4, 2),
)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Tile shapes by predicted time, each with the raster that shares most in a wave and half of it."""
    schedules = []
    for block_m, block_n, stages, ctas in SHAPES:
        best = wgmma_model.best_group(ctas * machine.sms, block_m, block_n)
        schedules += [Schedule(block_m, block_n, stages, ctas, group_m) for group_m in (best, max(1, best // 2))]
    yield from sorted(schedules, key=lambda s: bills(problem, s, machine, RANKING_CLOCK).us)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    tiles = wgmma_mainloop.tile_count(problem, schedule.block_m, schedule.block_n)
    return wgmma_mainloop.launch("gemm_wgmma", problem, schedule, tiles)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    return wgmma_mainloop.theory(problem, schedule)


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """A second CTA on an SM works while the first one starts and during its epilogue."""
    s, model = schedule, wgmma_model.coefficients(machine, clock)
    epilogue = wgmma_model.epilogue_clocks(problem, s.block_m, s.block_n, model)
    between = (model.restart_clocks + epilogue) / s.ctas_per_sm
    return wgmma_model.tiled_bills(problem, s.block_m, s.block_n, 1, between, machine, model)


requested = wgmma_mainloop.requested


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return wgmma_mainloop.simulate(launch, arrays, machine)
