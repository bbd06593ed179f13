"""fp8 summed in float32: each k-step's sum leaves the tensor cores, which keep few bits, for the registers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from numpy.typing import NDArray

from lab.kernel import Solves
from lab.kernels.gemm import _model, _tiles, gemm_cluster
from lab.kernels.gemm._tiles import FACTS, MMA_M
from lab.kernels.gemm.gemm_cluster import CONSUMERS
from lab.problems import Linear
from sim.counts import Counts
from sim.errors import ScheduleError
from sim.launch import Launch
from sim.machine import Machine

SOLVES = Solves(
    Linear,
    weights=("fp8",),
    arch="sm_90a",
    row_bytes=16,
    why_multiple="TMA needs rows that are multiples of 16 bytes",
    after="gemm_cluster",
    alike=True,
    options={"scales": ("tensor", "row"), "accumulate": ("float32",)},
    facts=FACTS,
)

SUMS = 192  # registers of a consumer's thread that may hold sums, of its 232


@dataclass(frozen=True)
class Schedule(gemm_cluster.Schedule):
    """As gemm_cluster's, with room for two partial sums of 64 rows beside each consumer's own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.own + 2 * self.part_columns * MMA_M // 128 > SUMS or self.part_columns % 32:
            raise ScheduleError(
                f"{self.block_m} x {self.block_n} outputs are {self.own} sums a thread; with two partial sums of "
                f"{self.part_columns} columns, a multiple of 32, a consumer has room for {SUMS}"
            )

    @property
    def own(self) -> int:
        """Sums of a consumer's thread that outlive a k-step."""
        return self.block_m // CONSUMERS * self.block_n // 128

    @property
    def part_columns(self) -> int:
        """Columns of a partial sum: the tile's, halved until two have room."""
        columns = self.block_n
        while self.own + 2 * columns * MMA_M // 128 > SUMS and columns % 64 == 0:
            columns //= 2
        return columns


SHAPES = (  # m, n, stages, boxes of y
    (128, 192, 4, 3),
    (256, 128, 4, 1),
    (128, 160, 5, 2),
    (256, 96, 4, 2),
    (128, 128, 6, 2),
    (128, 96, 6, 2),
    (128, 64, 8, 1),
)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Tile shapes and clusters by predicted time, each with the raster that shares most in a wave and half of it."""
    schedules = []
    for shape in SHAPES:
        for cluster in (2, 1):
            best = _model.best_group(machine.sms // cluster, cluster * shape[0], shape[1])
            schedules += [Schedule(*shape, cluster, group_m) for group_m in dict.fromkeys((best, max(1, best // 2)))]
    yield from sorted(schedules, key=lambda s: predicted_us(problem, s, machine))


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    (same,) = gemm_cluster.launch(problem, schedule, machine)
    return (replace(same, kernel="gemm_fp8_promoted", entry="gemm_fp8_promoted"),)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """Promotion moves nothing and adds no useful work."""
    return gemm_cluster.theory(problem, schedule, machine)


def predicted_us(problem: Linear, schedule: Schedule, machine: Machine) -> float:
    """One consumer's additions hide behind the other's mma."""
    return gemm_cluster.predicted_us(problem, schedule, machine)


def simulate(launch: Launch, arrays: Mapping[str, NDArray] | None, machine: Machine) -> Counts:
    """Simulated tensor cores sum in float32, so there is nothing to promote."""
    return _tiles.simulate(launch, arrays, machine)
