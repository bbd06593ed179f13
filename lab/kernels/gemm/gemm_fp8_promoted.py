"""fp8 summed in float32: each k-step's sum leaves the tensor cores, which keep few bits, for the registers."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import RANKING_CLOCK, Bills, Solves, require_choice
from lab.kernels.common import clusters
from lab.kernels.common.raster import tiles_of
from lab.kernels.gemm import cluster_ring, wgmma_epilogue, wgmma_mainloop, wgmma_model
from lab.kernels.gemm.cluster_ring import ClusterTiling
from lab.kernels.gemm.warp_roles import CONSUMERS
from lab.kernels.gemm.wgmma_mainloop import FACTS, MMA_M
from lab.problems import Linear
from sim.counts import Counts
from sim.errors import ScheduleError
from sim.launch import Launch
from sim.machine import Machine

SOLVES = Solves(
    Linear,
    formats=("fp8",),
    arch="sm_90a",
    row_bytes=16,
    why_multiple="TMA needs rows that are multiples of 16 bytes",
    after="gemm_cluster",
    alike=True,
    options={
        "output": ("fp8",),
        "scales": ("tensor", "row", "channel", "block"),
        "accumulate": ("float32",),
        "epilogue": ("residual", "swiglu"),
    },
    facts=FACTS,
)

SUMS = 192  # registers of a consumer's thread that may hold sums, of its 232
SUMS_AND_SCALES = 198  # the same where blocks have scales
NARROWEST = 96  # columns of a part of a wider tile: narrower ones read x more often than shared memory can keep up with


@dataclass(frozen=True)
class Schedule(ClusterTiling):
    """As gemm_cluster's, with room for partial sums of 64 rows beside each consumer's own."""

    hand_over: int = 0  # quarters of a part after which the other consumer multiplies in its turn; 0: no turns

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "hand_over", (0, 1, 2, 3))
        partial = self.part_columns * MMA_M // 128
        if self.own + self.partials * partial > SUMS:
            raise ScheduleError(
                f"{self.block_m} x {self.block_n} outputs are {self.own} sums and {self.partials} x {partial} partial "
                f"sums a thread; a consumer has room for {SUMS}"
            )

    @property
    def partials(self) -> int:
        """Partial sums of a consumer: without turns it adds one while the tensor cores fill the other."""
        return 1 if self.hand_over else 2

    @property
    def own(self) -> int:
        """Sums of a consumer's thread that outlive a k-step."""
        return self.block_m // CONSUMERS * self.block_n // 128

    @property
    def part_columns(self) -> int:
        """Columns of a partial sum: all of the tile's, or half of them where that makes room."""
        whole = self.own + self.partials * self.block_n * MMA_M // 128 <= SUMS
        half = self.block_n // 2
        return self.block_n if whole or half % 32 or half < NARROWEST else half

    def fits(self, problem: Linear, machine: Machine) -> None:
        super().fits(problem, machine)
        if problem.block_scales and wgmma_epilogue.BLOCK % self.part_columns:
            raise ScheduleError(
                f"a part has one scale of w, so its columns divide {wgmma_epilogue.BLOCK}; "
                f"those of {self.block_m} x {self.block_n} tiles have {self.part_columns}"
            )
        scales = 2 * (self.block_m // MMA_M + self.block_n // self.part_columns)  # of this step and of the next one
        sums = self.own + self.partials * self.part_columns * MMA_M // 128
        if problem.block_scales and sums + scales > SUMS_AND_SCALES:
            raise ScheduleError(
                f"{self.block_m} x {self.block_n} outputs are {sums} sums and {scales} scales of blocks a thread; a "
                f"consumer has room for {SUMS_AND_SCALES}"
            )


SHAPES = (  # m, n, stages, boxes of y
    (128, 256, 4, 2),
    (256, 128, 4, 2),
    (128, 192, 4, 3),
    (256, 96, 4, 2),
    (128, 160, 5, 2),
    (128, 128, 6, 2),
    (128, 96, 6, 2),
    (128, 64, 8, 1),
)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Tile shapes, clusters and turns by predicted time, each with the raster that shares most in a wave."""
    schedules = []
    for shape, cluster, hand_over in product(SHAPES, (2, 1), (2, 1, 0)):
        group_m = wgmma_model.best_group(machine.sms // cluster, cluster * shape[0], shape[1])
        with suppress(ScheduleError):  # two partial sums, or an epilogue's operands, have no room in every tile
            one = Schedule(*shape, cluster, group_m, hand_over)
            one.fits(problem, machine)
            schedules.append(one)
    yield from sorted(schedules, key=lambda s: bills(problem, s, machine, RANKING_CLOCK).us)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return cluster_ring.launch("gemm_fp8_promoted", problem, schedule, machine)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """Promotion moves nothing and adds no useful work; the scales of blocks are read step by step."""
    p, s = problem, schedule
    counts = cluster_ring.theory(p, s, machine)
    if not p.block_scales:
        return counts
    tiles_m = s.cluster * tiles_of(p.m, s.cluster * s.block_m)
    return counts + wgmma_epilogue.block_theory(p, s.block_n, s.part_columns, tiles_m)


class Coefficients(fits.Coefficients, frozen=True):
    """What the estimate is made of, beside gemm_cluster's."""

    promoted: float  # the time of two partial sums each, over gemm_cluster's one sum
    in_turn: float  # the time of consumers that multiply in turn, over that of two partial sums each
    of_blocks: float  # the time with scales of blocks, over that without


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """gemm_cluster's, longer for promotion, and the last part's additions of each tile."""
    s, model = schedule, fits.coefficients(Coefficients, "gemm_fp8_promoted", machine, clock)
    tiles = wgmma_mainloop.tile_count(problem, s.cluster * s.block_m, s.block_n)
    waves = tiles_of(tiles, clusters.resident(s.cluster, 1, machine))
    whole = cluster_ring.bills(problem, s, machine, clock)
    longer = (
        model.promoted * (model.in_turn if s.hand_over else 1.0) * (model.of_blocks if problem.block_scales else 1.0)
    )
    us = longer * whole.us + 1e6 * waves * s.part_columns / machine.clock_hz
    return Bills(us, {**whole.parts, "promotion": us - whole.us}, (*whole.apart, "promotion"))


requested = wgmma_mainloop.requested


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    """Simulated tensor cores sum in float32, so there is nothing to promote."""
    return wgmma_mainloop.simulate(launch, arrays, machine)
