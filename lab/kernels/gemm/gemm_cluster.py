"""Clusters load their common rows of w once; fp8 with scales, residual, swiglu: the layers of a transformer step."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from lab.kernel import RANKING_CLOCK, Bills, Solves
from lab.kernels.gemm import cluster_ring, wgmma_mainloop
from lab.kernels.gemm.cluster_ring import ClusterTiling
from lab.kernels.gemm.wgmma_mainloop import FACTS
from lab.problems import Linear
from sim.counts import Counts
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
        "scales": ("tensor", "row", "channel"),
        "epilogue": ("residual", "swiglu"),
    },
    facts=FACTS,
)


@dataclass(frozen=True)
class Schedule(ClusterTiling):
    """The tile of a CTA, half of its rows in each consumer, its ring, its epilogue's buffers, its cluster."""


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
    schedules = cluster_ring.spread(Schedule, SHAPES, problem, machine)
    yield from sorted(schedules, key=lambda s: bills(problem, s, machine, RANKING_CLOCK).us)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return cluster_ring.launch("gemm_cluster", problem, schedule, machine)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    return cluster_ring.theory(problem, schedule, machine)


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    return cluster_ring.bills(problem, schedule, machine, clock)


requested = wgmma_mainloop.requested


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return wgmma_mainloop.simulate(launch, arrays, machine)
