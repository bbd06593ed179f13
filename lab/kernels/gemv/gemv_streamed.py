"""Bulk copies fill a ring in shared memory: kilobytes in flight without registers, all SMs reading until the end."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from lab.kernel import Bills, Solves
from lab.kernels.gemv import bulk_ring, dot_product
from lab.kernels.gemv.bulk_ring import RINGS, Streaming
from lab.problems import Linear
from sim.counts import Counts
from sim.launch import Launch
from sim.machine import Machine

SOLVES = Solves(
    Linear,
    formats=("bf16", "fp16"),
    arch="sm_90a",
    multiple_of={"k": 8},
    why_multiple="bulk copies need rows that are multiples of 16 bytes",
    after="gemv_coalesced",
)


@dataclass(frozen=True)
class Schedule(Streaming):
    """The rows of a CTA and its ring."""


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """One wave of CTAs, each with as many rows; rings as deep as shared memory allows beside a dependent launch's."""
    for ctas_per_sm, warps, step_bytes, stages in RINGS:
        yield Schedule(-(-problem.n // (ctas_per_sm * machine.sms)), warps, step_bytes, stages)


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    return bulk_ring.bills(problem, schedule, 1, machine, clock)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    ctas = -(-problem.n // schedule.block_n)
    return dot_product.launch("gemv_streamed", problem, schedule, ctas, shared_bytes=schedule.shared_bytes)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """Each row of y is stored by itself."""
    return bulk_ring.theory(problem, schedule, split_k=1, stores=problem.m * problem.n)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return bulk_ring.simulate(launch, arrays, machine, split_k=1, owned=launch.schedule.block_n, stored=1)
