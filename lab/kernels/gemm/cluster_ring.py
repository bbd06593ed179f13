"""Persistent clusters whose CTAs load their common rows of w once, by multicast: schedules, launches, counts, times."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lab.kernel import Bills, require_choice, require_shared
from lab.kernels.common import clusters
from lab.kernels.common.linear import epilogue_arguments
from lab.kernels.common.raster import tiles_of
from lab.kernels.gemm import wgmma_epilogue, wgmma_mainloop, wgmma_model
from lab.kernels.gemm.warp_roles import Y_BOX, RoleTiling
from lab.problems import Linear
from sim.counts import Counts
from sim.errors import ScheduleError
from sim.launch import Launch
from sim.machine import Machine


@dataclass(frozen=True)
class ClusterTiling(RoleTiling):
    """The tile of a CTA, its ring, its epilogue's buffers, its cluster."""

    y_boxes: int  # 64 rows of 128 bytes of y that each consumer stages for the stores
    cluster: int  # CTAs, one below the other, that share the loads of w
    group_m: int  # rows of clusters walked together, so that x and w are shared in L2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "y_boxes", (1, 2, 3, 4))
        require_choice(self, "cluster", (1, 2, 4))

    @property
    def y_bytes(self) -> int:
        return self.y_boxes * Y_BOX

    def fits(self, problem: Linear, machine: Machine) -> None:
        require_shared(self.shared_bytes, f"{self.stages} stages and {self.y_boxes} boxes", machine)
        wgmma_mainloop.require_whole(problem, self.block_n)
        room = wgmma_mainloop.accumulator_room(problem)
        if self.accumulators > room:
            raise ScheduleError(
                f"{self.block_m} x {self.block_n} tiles are {self.accumulators} accumulators a thread; "
                f"this epilogue leaves room for {room}"
            )


def spread(
    schedule: type[Any], shapes: Iterable[tuple[int, int, int, int]], problem: Linear, machine: Machine
) -> Iterator[Any]:
    """Each shape that fits, in clusters no CTA of which lies below y, with two rasters; four CTAs where loads bind."""
    sizes = (1, 2, 4) if wgmma_model.crosses_lines(problem) else (1, 2)
    for shape in shapes:
        for cluster in sizes[: tiles_of(problem.m, shape[0])]:
            best = wgmma_model.best_group(machine.sms // cluster, cluster * shape[0], shape[1])
            for group_m in dict.fromkeys((best, max(1, best // 2))):
                with suppress(ScheduleError):
                    one = schedule(*shape, cluster, group_m)
                    one.fits(problem, machine)
                    yield one


def launch(kernel: str, problem: Linear, schedule: ClusterTiling, machine: Machine) -> tuple[Launch, ...]:
    """As many clusters as run at once, or as there are tiles of theirs."""
    p, s = problem, schedule
    w_rows = wgmma_mainloop.columns_of(p, s.block_n) // s.cluster
    *described, m, n, k = wgmma_mainloop.arguments(p, s.block_n, s.block_m, w_rows)
    return (
        Launch(
            kernel=kernel,
            entry=kernel,
            problem=p,
            schedule=s,
            grid=(_ctas(p, s, machine), 1, 1),
            block=(s.threads, 1, 1),
            arguments=(*described, *epilogue_arguments(p), m, n, k),
            cluster=(s.cluster, 1, 1),
            shared_bytes=s.shared_bytes,
        ),
    )


def _ctas(problem: Linear, schedule: ClusterTiling, machine: Machine) -> int:
    s = schedule
    tiles = wgmma_mainloop.tile_count(problem, s.cluster * s.block_m, s.block_n)
    return s.cluster * min(tiles, clusters.resident(s.cluster, 1, machine))


def theory(problem: Linear, schedule: ClusterTiling, machine: Machine) -> Counts:
    """A cluster's last tiles may lie outside y; they are loaded and multiplied all the same."""
    p, s = problem, schedule
    tiles_m = s.cluster * tiles_of(p.m, s.cluster * s.block_m)
    columns = tiles_of(p.columns, wgmma_mainloop.columns_of(p, s.block_n)) * wgmma_mainloop.columns_of(p, s.block_n)
    mainloop = wgmma_mainloop.tiled_theory(p, s.block_m, s.block_n, tiles_m)
    box = wgmma_mainloop.box_columns(p, s.block_n)
    return wgmma_epilogue.theory(p, mainloop, tiles_m * s.block_m, columns, box, _ctas(p, s, machine))


def bills(
    problem: Linear, schedule: ClusterTiling, machine: Machine, clock: str, crossing_w: bool | None = None
) -> Bills:
    """Where the tensor cores wait for a tile's epilogue; `crossing_w` as `wgmma_model.step_clocks` has it."""
    s, model = schedule, wgmma_model.coefficients(machine, clock)
    between = model.tile_clocks + wgmma_model.epilogue_clocks(problem, s.block_m, s.block_n, model)
    return wgmma_model.tiled_bills(problem, s.block_m, s.block_n, s.cluster, between, machine, model, crossing_w)
