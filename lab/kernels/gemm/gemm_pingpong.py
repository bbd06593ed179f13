"""Two consumers take whole tiles in turn: one multiplies while the other rounds and stores."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from numpy.typing import NDArray

from lab.kernel import require_choice
from lab.kernels.gemm import _model, _tiles, gemm_cluster
from lab.problems import Linear
from sim.counts import Counts
from sim.launch import Launch
from sim.machine import Machine

SOLVES = replace(gemm_cluster.SOLVES, after="gemm_cluster")


@dataclass(frozen=True)
class Schedule(gemm_cluster.Schedule):
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
    schedules = gemm_cluster.spread(Schedule, SHAPES, problem, machine)
    yield from sorted(schedules, key=lambda s: predicted_us(problem, s, machine))


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    (same,) = gemm_cluster.launch(problem, schedule, machine)
    return (replace(same, kernel="gemm_pingpong", entry="gemm_pingpong"),)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    return gemm_cluster.theory(problem, schedule, machine)


def predicted_us(problem: Linear, schedule: Schedule, machine: Machine) -> float:
    """A tile's way out hides behind the next tile's k-steps, as far as those last."""
    s = schedule
    steps = _tiles.tiles_of(problem.k, _tiles.step_of(problem))
    tile = steps * _model.step_clocks(problem, s.block_m, s.block_n, s.cluster, machine)
    between = _model.TILE_CLOCKS + max(0.0, _model.way_out(problem, s.block_m, s.block_n) - tile)
    return _model.tiled_us(problem, theory(problem, s, machine), s.block_m, s.block_n, s.cluster, between, machine)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return _tiles.simulate(launch, arrays, machine)
