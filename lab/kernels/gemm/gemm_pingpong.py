"""Two consumers take whole tiles in turn: one multiplies while the other rounds and stores."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from lab.kernel import Solves, require_choice, require_shared
from lab.kernels._linear import epilogue_arguments
from lab.kernels.gemm import _epilogue, _model, _tiles
from lab.kernels.gemm._tiles import FACTS, MMA_M, Tiling, tiles_of
from lab.problems import Linear
from sim.counts import Counts
from sim.errors import ScheduleError
from sim.launch import Launch
from sim.machine import Machine

SOLVES = Solves(
    Linear,
    weights=("bf16", "fp16", "fp8"),
    arch="sm_90a",
    row_bytes=16,
    why_multiple="TMA needs rows that are multiples of 16 bytes",
    after="gemm_cluster",
    alike=True,
    options={
        "output": ("fp8",),
        "scales": ("tensor", "row"),
        "epilogue": ("residual", "swiglu"),
    },
    facts=FACTS,
)

CONSUMERS = 2  # warpgroups that multiply; one more loads


@dataclass(frozen=True)
class Schedule(Tiling):
    """The tile of a consumer, the CTA's ring, its way out, its cluster."""

    y_boxes: int  # 64 rows of 128 bytes of y that each consumer stages for the stores
    cluster: int  # CTAs, one below the other, that share the loads of w
    group_m: int  # rows of clusters walked together, so that x and w are shared in L2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "block_m", (64, 128))
        _tiles.require_accumulators(self.block_m, self.block_n)
        require_choice(self, "y_boxes", (1, 2, 3, 4))
        require_choice(self, "cluster", (1, 2))
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
        _tiles.require_halves(problem, self.block_n)


SHAPES = (  # m, n, stages, boxes of y
    (128, 128, 5, 2),
    (128, 128, 4, 4),
    (64, 256, 4, 4),
    (64, 256, 5, 1),
    (64, 224, 5, 2),
    (64, 192, 5, 3),
    (128, 96, 6, 2),
    (64, 128, 7, 2),
)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Tile shapes and clusters by predicted time, each with the raster that shares most in a wave and half of it."""
    schedules = []
    for shape in SHAPES:
        for cluster in (2, 1):
            best = _model.best_group(machine.sms // cluster, cluster * shape[0], shape[1])
            for group_m in (best, max(1, best // 2)):
                schedule = Schedule(*shape, cluster, group_m)
                if columns_whole(problem, schedule):
                    schedules.append(schedule)
    yield from sorted(schedules, key=lambda s: predicted_us(problem, s, machine))


def columns_whole(problem: Linear, schedule: Schedule) -> bool:
    try:
        _tiles.require_halves(problem, schedule.block_n)
    except ScheduleError:
        return False
    return True


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s = problem, schedule
    tiles = _tiles.tile_count(p, s.cluster * s.block_m, s.block_n)
    *described, m, n, k = _tiles.arguments(p, s.block_n, s.block_m, _tiles.columns_of(p, s.block_n) // s.cluster)
    return (
        Launch(
            kernel="gemm_pingpong",
            entry="gemm_pingpong",
            problem=p,
            schedule=s,
            grid=(s.cluster * min(tiles, machine.sms // s.cluster), 1, 1),
            block=(s.threads, 1, 1),
            arguments=(*described, *epilogue_arguments(p), m, n, k),
            cluster=(s.cluster, 1, 1),
            shared_bytes=s.shared_bytes,
        ),
    )


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """A cluster's last tiles may lie outside y; they are loaded and multiplied all the same."""
    p, s = problem, schedule
    tiles_m = s.cluster * tiles_of(p.m, s.cluster * s.block_m)
    columns = tiles_of(p.columns, _tiles.columns_of(p, s.block_n)) * _tiles.columns_of(p, s.block_n)
    (launched,) = launch(p, s, machine)
    mainloop = _tiles.theory(p, s.block_m, s.block_n, tiles_m)
    box = _tiles.box_columns(p, s.block_n)
    return _epilogue.theory(p, mainloop, tiles_m * s.block_m, columns, box, launched.ctas)


def predicted_us(problem: Linear, schedule: Schedule, machine: Machine) -> float:
    s = schedule
    return _model.persistent_us(problem, theory(problem, s, machine), s.block_m, s.block_n, s.cluster, 0.9, machine)


def simulate(launch: Launch, arrays: Mapping[str, NDArray] | None, machine: Machine) -> Counts:
    return _tiles.simulate(launch, arrays, machine)
