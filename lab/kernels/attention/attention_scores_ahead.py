"""Scores are made a block ahead of their softmax, so that consumers never wait for what they have just issued."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from numpy.typing import NDArray

from lab.kernel import Bills, Solves
from lab.kernels.attention import persistent, prefill, prefill_theory
from lab.problems import Attention
from sim.counts import Counts
from sim.launch import Launch
from sim.machine import Machine

SOLVES = Solves(
    Attention,
    formats=("bf16", "fp16"),
    arch="sm_90a",
    after="attention_pingpong",
    options=persistent.OPTIONS,
    facts=prefill.FACTS,
)


@dataclass(frozen=True)
class Schedule(persistent.PersistentTiling):
    """Tiles and rings; two blocks of scores are in registers."""

    def registers(self, problem: Attention) -> int:
        return super().registers(problem) + self.block_n // 2 + AHEAD_REGISTERS


AHEAD_REGISTERS = 20  # as ptxas has it: two blocks of 80 keys fit, of 96 not

# Measured on the H200 at head_dim 128.
LONG = Schedule(128, 80, 4, section=16, slack=8, splits=1, cluster=1)
MEASURED = (LONG, replace(LONG, section=32), replace(LONG, block_n=64))


def candidates(problem: Attention, machine: Machine) -> Iterator[Schedule]:
    """Measured schedules that fit, the best for problems of this kind first."""
    p = problem
    best = LONG if p.causal else replace(LONG, section=persistent.cached_heads(p, machine))
    splits = persistent.filling(p, LONG.block_m, machine)
    few = [replace(LONG, splits=splits)] if splits > 1 else []
    halves = [replace(LONG, block_n=64, splits=2, cluster=2)] if p.kv_len > 64 else []
    yield from prefill.fitting((*few, best, *MEASURED, *halves), p, machine)


def launch(problem: Attention, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return persistent.launch("attention_scores_ahead", problem, schedule, machine)


def bills(problem: Attention, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    return prefill_theory.bills("attention_scores_ahead", problem, schedule, machine, clock)


def theory(problem: Attention, schedule: Schedule, machine: Machine) -> Counts:
    return persistent.theory(problem, schedule)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return persistent.simulate(launch, arrays, machine)
