"""One warpgroup loads, two multiply: no warp that multiplies waits to refill, and they hold a larger tile."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from lab.kernel import Solves, require_choice, require_shared
from lab.kernels.gemm import _model, _tiles
from lab.kernels.gemm._tiles import FACTS, MMA_M, Tiling
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

CONSUMERS = 2  # warpgroups that multiply; one more loads


@dataclass(frozen=True)
class Schedule(Tiling):
    """The tile of a CTA, half of its rows in each consumer, and its ring."""

    group_m: int  # tile rows walked together, so that x and w are shared in L2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "block_m", (128, 256))
        _tiles.require_accumulators(self.block_m // CONSUMERS * self.block_n // 128)
        _tiles.require_group(self.group_m)

    @property
    def threads(self) -> int:
        return (1 + CONSUMERS) * 128

    @property
    def y_bytes(self) -> int:
        """Two boxes of y in each consumer: one is rounded while the other is stored."""
        return 2 * MMA_M * 128

    @property
    def shared_bytes(self) -> int:
        return self.ring_bytes + CONSUMERS * self.y_bytes

    def fits(self, problem: Linear, machine: Machine) -> None:
        require_shared(self.shared_bytes, f"{self.stages} stages", machine)


SHAPES = ((128, 256, 4), (256, 128, 4), (128, 192, 4), (128, 160, 5), (128, 128, 6), (128, 64, 8))  # m, n, stages


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Tile shapes by predicted time, each with the raster that shares most in a wave and with rows of tiles alone."""
    schedules = [
        Schedule(*shape, group_m) for shape in SHAPES for group_m in (_model.best_group(machine.sms, *shape[:2]), 1)
    ]
    yield from sorted(schedules, key=lambda s: (s.group_m == 1, predicted_us(problem, s, machine)))


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    s = schedule
    return (
        Launch(
            kernel="gemm_warp_specialized",
            entry="gemm_warp_specialized",
            problem=problem,
            schedule=s,
            grid=(_tiles.tile_count(problem, s.block_m, s.block_n), 1, 1),
            block=(s.threads, 1, 1),
            arguments=_tiles.arguments(problem, s.block_n, s.block_m, s.block_n),
            shared_bytes=s.shared_bytes,
        ),
    )


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    s = schedule
    return _tiles.theory(problem, s.block_m, s.block_n, _tiles.tiles_of(problem.m, s.block_m))


def predicted_us(problem: Linear, schedule: Schedule, machine: Machine) -> float:
    s = schedule
    between = _model.RESTART_CLOCKS + _model.way_out(problem, s.block_m, s.block_n)
    return _model.tiled_us(problem, theory(problem, s, machine), s.block_m, s.block_n, 1, between, machine)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return _tiles.simulate(launch, arrays, machine)
