"""Clusters load their common rows of w once; fp8 with scales, residual, swiglu: the layers of a transformer step."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

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
    formats=("bf16", "fp16", "fp8"),
    arch="sm_90a",
    row_bytes=16,
    why_multiple="TMA needs rows that are multiples of 16 bytes",
    after="gemm_persistent",
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
    """The tile of a CTA, half of its rows in each consumer, its ring, its way out, its cluster."""

    y_boxes: int  # 64 rows of 128 bytes of y that each consumer stages for the stores
    cluster: int  # CTAs, one below the other, that share the loads of w
    group_m: int  # rows of clusters walked together, so that x and w are shared in L2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_rows()
        _tiles.require_accumulators(self.accumulators)
        require_choice(self, "y_boxes", (1, 2, 3, 4))
        require_choice(self, "cluster", (1, 2, 4))
        _tiles.require_group(self.group_m)

    def require_rows(self) -> None:
        """Raise ScheduleError where a consumer's part of a tile is not whole rows of mma."""
        require_choice(self, "block_m", (128, 256))

    @property
    def accumulators(self) -> int:
        """Of a consumer's thread."""
        return self.block_m // CONSUMERS * self.block_n // 128

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
        _tiles.require_whole(problem, self.block_n)
        if self.accumulators > _tiles.accumulators_beside(problem):
            raise ScheduleError(
                f"{self.block_m} x {self.block_n} tiles are {self.accumulators} accumulators a thread; "
                f"beside this way out there is room for {_tiles.accumulators_beside(problem)}"
            )


SHAPES = (  # m, n, stages, boxes of y
    (128, 256, 4, 2),
    (256, 128, 4, 2),
    (256, 192, 3, 2),
    (256, 160, 3, 3),
    (128, 256, 3, 4),
    (128, 224, 4, 2),
    (128, 192, 4, 3),
    (128, 160, 5, 2),
    (128, 128, 6, 2),
    (256, 96, 4, 2),
    (128, 96, 6, 2),
    (128, 64, 8, 1),
)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Tile shapes and clusters by predicted time, each with the raster that shares most in a wave and half of it."""
    schedules = spread(Schedule, SHAPES, problem, machine)
    yield from sorted(schedules, key=lambda s: predicted_us(problem, s, machine))


def spread(
    schedule: type[Any], shapes: Iterable[tuple[int, int, int, int]], problem: Linear, machine: Machine
) -> Iterator[Any]:
    """Each shape that fits, in clusters no CTA of which lies below y, with two rasters; four CTAs where loads bind."""
    sizes = (1, 2, 4) if _model.crosses_lines(problem) else (1, 2)
    for shape in shapes:
        for cluster in sizes[: tiles_of(problem.m, shape[0])]:
            best = _model.best_group(machine.sms // cluster, cluster * shape[0], shape[1])
            for group_m in dict.fromkeys((best, max(1, best // 2))):
                with suppress(ScheduleError):
                    one = schedule(*shape, cluster, group_m)
                    one.fits(problem, machine)
                    yield one


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s = problem, schedule
    tiles = _tiles.tile_count(p, s.cluster * s.block_m, s.block_n)
    *described, m, n, k = _tiles.arguments(p, s.block_n, s.block_m, _tiles.columns_of(p, s.block_n) // s.cluster)
    return (
        Launch(
            kernel="gemm_cluster",
            entry="gemm_cluster",
            problem=p,
            schedule=s,
            grid=(s.cluster * min(tiles, _tiles.clusters_at_once(s.cluster, machine)), 1, 1),
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
    between = _model.TILE_CLOCKS + _model.way_out(problem, s.block_m, s.block_n)
    return _model.tiled_us(problem, theory(problem, s, machine), s.block_m, s.block_n, s.cluster, between, machine)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return _tiles.simulate(launch, arrays, machine)
