"""A kernel on the simulated chip, checked: all of it where that is quick, else all counts and the numbers of a part."""

from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import lab
from lab.kernel import Kernel
from lab.problems import Linear, Problem
from lab.verify import Check, simulator
from sim.counts import Counts, disagreements
from sim.errors import InputError
from sim.machine import Machine
from sim.predict import predict_us

BUDGET = 6.0  # seconds of simulated arithmetic that a check may cost
_TENSOR_RATE, _SCALAR_RATE = 5e10, 1e9  # FLOP/s of the simulated chip on two cores
_PART_ELEMENTS = 2**26  # of each array of a part: it is drawn, decoded and multiplied in float64
_TILE = 128  # a part keeps this remainder, so that it has the same ragged edge


@dataclass(frozen=True)
class Simulation:
    """A kernel on the simulated chip. `part` is the problem whose numbers were computed: the whole, or a corner of it.

    `predicted_us` is the sum over the launches.
    """

    kernel: str
    problem: Problem
    part: Problem
    schedule: Any
    check: Check
    theory: Counts
    simulated: Counts
    predicted_us: float
    disagreements: dict[str, tuple[int, int]]

    @property
    def passed(self) -> bool:
        return self.check.passed and not self.disagreements

    @property
    def note(self) -> str:
        """What was not computed, in one sentence; empty where everything was."""
        if self.part == self.problem:
            return ""
        names = [name for name in ("m", "n", "k") if getattr(self.part, name) != getattr(self.problem, name)]
        size = ", ".join(f"{name} = {getattr(self.part, name):,} of {getattr(self.problem, name):,}" for name in names)
        return f"counts are of the whole problem; numbers were computed and checked for a part of it ({size})"


def simulate(
    kernel: Kernel, problem: Problem, schedule: Any, machine: Machine, budget_s: float = BUDGET, seed: int = 0
) -> Simulation:
    """Simulate and check a kernel; raises InputError or ScheduleError for what the kernel refuses."""
    require_arch(kernel, machine)
    require_room(problem, machine)
    theory = kernel.module.theory(problem, schedule, machine)
    part = affordable_part(problem, theory, budget_s)
    verified = lab.verify(kernel, part, schedule, machine, simulator(kernel, machine), seed)
    whole, predicted = count(kernel, problem, schedule, machine)
    return Simulation(
        kernel=kernel.name,
        problem=problem,
        part=part,
        schedule=schedule,
        check=verified.check,
        theory=theory,
        simulated=whole,
        predicted_us=predicted,
        disagreements={**verified.disagreements, **disagreements(theory, whole)},
    )


def count(kernel: Kernel, problem: Problem, schedule: Any, machine: Machine) -> tuple[Counts, float]:
    """(counts, predicted microseconds) of all launches of a kernel, without numbers."""
    launches = kernel.launches(problem, schedule, machine)
    counts = [kernel.module.simulate(launch, None, machine) for launch in launches]
    predicted = sum(
        predict_us(counted, problem.activations, machine, launch.ctas)
        for counted, launch in zip(counts, launches, strict=True)
    )
    return reduce(add, counts), predicted


def affordable_part(problem: Problem, theory: Counts, budget_s: float) -> Problem:
    """The problem itself, or for a linear layer its first rows and columns, as many as the budget pays for.

    Every output element depends on one row of x and one of w alone, so a part is computed as in the whole.
    """
    if not isinstance(problem, Linear):
        return problem
    flops = budget_s * (_TENSOR_RATE if theory.mma_flops else _SCALAR_RATE)
    n = _shrink(problem.n, _PART_ELEMENTS // problem.k)
    m = _shrink(problem.m, min(_PART_ELEMENTS // max(problem.k, n), int(flops // (2 * n * problem.k))))
    n = _shrink(n, int(flops // (2 * m * problem.k)))
    return replace(problem, m=m, n=n)


def _shrink(extent: int, most: int) -> int:
    """At most `most`, with the remainder of `extent` by a tile; but no less than one tile and that remainder."""
    if extent <= most:
        return extent
    remainder = extent % _TILE
    return min(extent, max(1, (most - remainder) // _TILE) * _TILE + remainder)


def require_arch(kernel: Kernel, machine: Machine) -> None:
    """Raise InputError where the kernel is written for another architecture than the machine's."""
    if not kernel.solves.runs_on(machine.arch):
        needs = kernel.solves.arch
        raise InputError(f"{kernel.name} needs architecture {needs}; the {machine.title} is {machine.arch}")


def require_room(problem: Problem, machine: Machine) -> None:
    """Raise InputError where the problem's arrays do not fit into the machine's HBM."""
    total = problem.bytes["total"]
    if total > machine.hbm_bytes:
        raise InputError(f"this problem has {total:,} B; the {machine.title} has {machine.hbm_bytes:,} B of HBM")
