"""What the phases of a generation cost: bytes, FLOPs, intensity, regime, time and floor of prefill and of decode."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from lab.inference.units import Done
from lab.problems import Attention
from sim.counts import Counts
from sim.machine import Machine
from sim.roofline import Roofline, roofline

PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True)
class Step:
    """One forward pass: its linear layers, one layer's attention, how many layers, and the wall clock it took."""

    done: tuple[Done, ...]
    attention: Attention
    layers: int
    wall_us: float


@dataclass(frozen=True)
class Phase:
    """The forward passes of one phase together.

    Linear layers are as the kernels counted them; attention, plain array code so far, is its closed form, one launch a
    layer at its floor. `bytes` holds each weight, KV element and activation of a pass once; norms, rotary embedding and
    element-wise work are left out. `us` is predicted where the chip is simulated, else the wall clock.
    """

    name: str
    tokens: int
    launches: dict[str, int]  # of linear layers, by kernel
    counts: Counts  # of linear layers
    bytes: dict[str, int]
    flops: int
    roofline: Roofline
    us: float
    clock: str  # "predicted" or "wall"
    wall_us: float

    def as_dict(self) -> dict[str, Any]:
        """One entry of `phases` in the document of `lab generate --json`: times in microseconds."""
        return {
            "phase": self.name,
            "tokens": self.tokens,
            "launches": self.launches,
            "bytes": self.bytes,
            "flops": self.flops,
            "intensity": self.roofline.intensity,
            "ridge": self.roofline.ridge,
            "regime": self.roofline.regime,
            "us": self.us,
            "clock": self.clock,
            "floor_us": self.roofline.floor_us,
            "memory_us": self.roofline.memory_us,
            "compute_us": self.roofline.compute_us,
            "launch_us": self.roofline.launch_us,
            "wall_us": self.wall_us,
            "counts": self.counts.as_dict(),
        }


def summarise(name: str, steps: Sequence[Step], machine: Machine) -> Phase:
    """The bill of one or more forward passes; raises InputError where the machine has no unit for their format."""
    done = [d for step in steps for d in step.done]
    size: Counter[str] = Counter()
    for problem, times in _problems(steps):
        size.update({kind: times * nbytes for kind, nbytes in problem.bytes.items()})
    flops = sum(d.counts.flops or 0 for d in done) + sum(s.layers * s.attention.flops for s in steps)
    launches: Counter[str] = Counter()
    for d in done:
        launches[d.kernel] += d.launches
    issued = launches.total() + sum(s.layers for s in steps)
    wall_us = sum(s.wall_us for s in steps)
    predicted = [d.predicted_us for d in done if d.predicted_us is not None]
    simulated = len(predicted) == len(done)
    attention_us = sum(s.layers * _floor_us(s.attention, machine) for s in steps)
    return Phase(
        name=name,
        tokens=sum(s.attention.q_len for s in steps),
        launches=dict(launches),
        counts=reduce(add, (d.counts for d in done)),
        bytes=dict(size),
        flops=flops,
        roofline=roofline(flops, size["total"], done[0].problem.activations, machine, issued),
        us=sum(predicted) + attention_us if simulated else wall_us,
        clock="predicted" if simulated else "wall",
        wall_us=wall_us,
    )


def _problems(steps: Sequence[Step]) -> list[tuple[Any, int]]:
    """Every problem of the steps and how often it was solved."""
    linear = Counter(d.problem for step in steps for d in step.done)
    attention: Counter[Attention] = Counter()
    for step in steps:
        attention[step.attention] += step.layers
    return [*linear.items(), *attention.items()]


def _floor_us(attention: Attention, machine: Machine) -> float:
    return roofline(attention.flops, attention.bytes["total"], attention.activations, machine).floor_us
