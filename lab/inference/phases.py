"""What the phases of a generation cost: bytes, FLOPs, intensity, regime, time and floor of prefill and of decode."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from lab.problems import Problem
from sim.counts import Counts
from sim.machine import Machine
from sim.roofline import Roofline, roofline

PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True)
class Solved:
    """A problem that a pass solved several `times`: by which kernel, in how many launches each time.

    `predicted_us` is what the simulated chip would take each time; None where the time is measured.
    """

    kernel: str
    launches: int
    problem: Problem
    times: int
    predicted_us: float | None


@dataclass(frozen=True)
class Pass:
    """One forward pass of so many new tokens: what it solved, its counts, and the wall clock it took."""

    tokens: int
    solved: tuple[Solved, ...]
    counts: Counts
    wall_us: float


@dataclass(frozen=True)
class Phase:
    """The forward passes of one phase together.

    Counts are as the kernels counted them, on a GPU their closed forms. `bytes` holds each weight, KV element and
    activation that a kernel takes or gives once. `us` is predicted where the chip is simulated, else the wall clock.
    """

    name: str
    tokens: int
    launches: dict[str, int]  # by kernel
    counts: Counts
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


def summarise(name: str, passes: Sequence[Pass], machine: Machine) -> Phase:
    """The bill of one or more forward passes; raises InputError where the machine has no unit for their format."""
    solved = [s for one in passes for s in one.solved]
    size: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for s in solved:
        size.update({kind: s.times * nbytes for kind, nbytes in s.problem.bytes.items()})
        launches[s.kernel] += s.times * s.launches
    flops = sum(s.times * s.problem.flops for s in solved)
    wall_us = sum(one.wall_us for one in passes)
    predicted = [s.times * s.predicted_us for s in solved if s.predicted_us is not None]
    simulated = len(predicted) == len(solved)
    unit = next(s.problem.unit for s in solved if s.problem.kind == "linear")
    return Phase(
        name=name,
        tokens=sum(one.tokens for one in passes),
        launches=dict(launches),
        counts=reduce(add, (one.counts for one in passes)),
        bytes=dict(size),
        flops=flops,
        roofline=roofline(flops, size["total"], unit, machine, launches.total()),
        us=sum(predicted) if simulated else wall_us,
        clock="predicted" if simulated else "wall",
        wall_us=wall_us,
    )
