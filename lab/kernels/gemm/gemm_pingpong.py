"""Two consumers take whole tiles in turn: one multiplies while the other rounds and stores."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from numpy.typing import NDArray

from lab.kernel import RANKING_CLOCK, Bills, require_choice
from lab.kernels.common.raster import tiles_of
from lab.kernels.gemm import cluster_ring, gemm_cluster, wgmma_mainloop, wgmma_model
from lab.kernels.gemm.cluster_ring import ClusterTiling
from lab.problems import Linear
from sim.counts import Counts
from sim.launch import Launch
from sim.machine import Machine

SOLVES = replace(gemm_cluster.SOLVES, after="gemm_cluster")


@dataclass(frozen=True)
class Schedule(ClusterTiling):
    """As gemm_cluster's, but each consumer takes a whole tile."""

    def require_rows(self) -> None:
        require_choice(self, "block_m", (64, 128))

    @property
    def accumulators(self) -> int:
        return self.block_m * self.block_n // 128


SHAPES = (  # m, n, stages, boxes of y
    (128, 192, 4, 2),
    (128, 160, 5, 1),
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
    schedules = cluster_ring.spread(Schedule, SHAPES, problem, machine)
    yield from sorted(schedules, key=lambda s: bills(problem, s, machine, RANKING_CLOCK).us)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return cluster_ring.launch("gemm_pingpong", problem, schedule, machine)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    return cluster_ring.theory(problem, schedule, machine)


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """A tile's epilogue hides behind the next tile's k-steps, as far as those last."""
    s, model = schedule, wgmma_model.coefficients(machine, clock)
    step = max(wgmma_model.step_clocks(problem, s.block_m, s.block_n, s.cluster, machine, model).values())
    tile = tiles_of(problem.k, wgmma_mainloop.step_of(problem)) * step
    between = model.tile_clocks + max(0.0, wgmma_model.epilogue_clocks(problem, s.block_m, s.block_n, model) - tile)
    return wgmma_model.tiled_bills(problem, s.block_m, s.block_n, s.cluster, between, machine, model)


requested = wgmma_mainloop.requested


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return wgmma_mainloop.simulate(launch, arrays, machine)
