"""Consumers multiply in turn, one's softmax under the other's products; CTAs take tiles from a counter."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from numpy.typing import NDArray

from lab.kernel import Bills, Solves, require_choice
from lab.kernels.attention import persistent, prefill, prefill_theory
from lab.problems import Attention
from sim.counts import Counts
from sim.errors import ScheduleError
from sim.launch import Launch
from sim.machine import Machine

SOLVES = Solves(
    Attention,
    formats=("bf16", "fp16"),
    arch="sm_90a",
    after="attention_warp_specialized",
    options=persistent.OPTIONS,
    facts=prefill.FACTS,
)

FROM_REGISTERS = (64, 96, 128, 192)  # block_n of a wgmma with queries in registers


@dataclass(frozen=True)
class Schedule(persistent.PersistentTiling):
    """Tiles and rings, and how consumers share the tensor cores."""

    turns: int  # 0: consumers multiply as they come; 1: in turn, passed on when all is issued; 2: when scores are done
    lead: int  # steps of the weighted sum that are issued after the turn was passed on
    q_registers: int  # 1: queries are held in registers; 0: wgmma reads them from shared memory

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "turns", (0, 1, 2))
        require_choice(self, "q_registers", (0, 1))
        steps = self.block_n // prefill.MMA_K
        if not 0 <= self.lead < steps:
            raise ScheduleError(f"lead is from 0 to {steps - 1} of the {steps} steps of a block; lead = {self.lead}")
        if self.q_registers:
            require_choice(self, "block_n", FROM_REGISTERS)

    def registers(self, problem: Attention) -> int:
        return super().registers(problem) + (problem.head_dim // 4 if self.q_registers else 0)


# Measured on the H200 at head_dim 128.
LONG = Schedule(128, 128, 3, section=16, slack=8, splits=1, cluster=1, turns=0, lead=0, q_registers=1)
SHORT = replace(LONG, section=32)
CHUNK = replace(LONG, turns=2)
FEW = replace(CHUNK, q_registers=0)
FULL = replace(LONG, block_m=192, block_n=80, q_registers=0)
MEASURED = (
    LONG,
    SHORT,
    CHUNK,
    FULL,
    replace(LONG, turns=1, lead=2),
    replace(LONG, block_n=64, stages=4),
)
LONG_KEYS = 8192  # from so many on causal attention has enough tiles to fill the chip section by section


def candidates(problem: Attention, machine: Machine) -> Iterator[Schedule]:
    """Measured schedules that fit, the best for problems of this kind first."""
    p = problem
    if not p.causal:
        best = replace(FULL, section=persistent.cached_heads(p, machine))
    elif p.q_len < p.kv_len:
        best = CHUNK
    else:
        best = LONG if p.kv_len >= LONG_KEYS else SHORT
    splits = persistent.filling(p, FEW.block_m, machine)
    few = [replace(FEW, splits=splits)] if splits > 1 else []
    halves = [replace(FEW, block_n=64, stages=4, splits=2, cluster=2)] if p.kv_len > 64 else []
    yield from prefill.fitting((*few, best, *MEASURED, *halves), p, machine)


def launch(problem: Attention, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return persistent.launch("attention_pingpong", problem, schedule, machine)


def bills(problem: Attention, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    return prefill_theory.bills("attention_pingpong", problem, schedule, machine, clock)


def theory(problem: Attention, schedule: Schedule, machine: Machine) -> Counts:
    return persistent.theory(problem, schedule)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return persistent.simulate(launch, arrays, machine)
