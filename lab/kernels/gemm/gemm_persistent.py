"""As many CTAs as SMs, each taking tile after tile: loads and stores overlap the neighbouring tiles' work."""

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
    after="gemm_warp_specialized",
    facts=FACTS,
)

CONSUMERS = 2  # warpgroups that multiply; one more loads


@dataclass(frozen=True)
class Schedule(Tiling):
    """The tile of a CTA, half of its rows in each consumer, its ring, its way out."""

    y_boxes: int  # 64 rows of 128 bytes of y that each consumer stages for the stores
    group_m: int  # tile rows walked together, so that x and w are shared in L2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "block_m", (128, 256))
        _tiles.require_accumulators(self.block_m // CONSUMERS * self.block_n // 128)
        require_choice(self, "y_boxes", (1, 2, 3, 4))
        _tiles.require_group(self.group_m)

    @property
    def threads(self) -> int:
        return (1 + CONSUMERS) * 128

    @property
    def y_bytes(self) -> int:
        return self.y_boxes * MMA_M * 128

    @property
    def shared_bytes(self) -> int:
        return self.ring_bytes + CONSUMERS * self.y_bytes

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
    schedules = [
        Schedule(*shape, group_m) for shape in SHAPES for group_m in (_model.best_group(machine.sms, *shape[:2]), 1)
    ]
    yield from sorted(schedules, key=lambda s: (s.group_m == 1, predicted_us(problem, s, machine)))


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    s = schedule
    return (
        Launch(
            kernel="gemm_persistent",
            entry="gemm_persistent",
            problem=problem,
            schedule=s,
            grid=(min(_tiles.tile_count(problem, s.block_m, s.block_n), machine.sms), 1, 1),
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
    between = _model.TILE_CLOCKS + _model.way_out(problem, s.block_m, s.block_n)
    return _model.tiled_us(problem, theory(problem, s, machine), s.block_m, s.block_n, 1, between, machine)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return _tiles.simulate(launch, arrays, machine)
