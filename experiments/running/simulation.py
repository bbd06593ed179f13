"""A kernel on the simulated chip, checked: all of it where that is quick, else all counts and the numbers of a part."""

from dataclasses import dataclass
from typing import Any

import lab
from lab.kernel import Kernel
from lab.problems import Problem
from lab.verify import Check, simulator
from sim.counts import Counts, disagreements
from sim.errors import InputError
from sim.machine import Machine

BUDGET = 6.0  # seconds of simulated arithmetic that a check may cost
_TENSOR_RATE, _SCALAR_RATE = 5e10, 1e9  # FLOP/s of the simulated chip on two cores


@dataclass(frozen=True)
class Simulation:
    """A kernel on the simulated chip; `part` is the problem whose numbers were computed: the whole, or a corner."""

    kernel: str
    problem: Problem
    part: Problem
    schedule: Any
    check: Check
    theory: Counts
    simulated: Counts
    disagreements: dict[str, tuple[int, int]]

    @property
    def passed(self) -> bool:
        return self.check.passed and not self.disagreements

    @property
    def note(self) -> str:
        """What was not computed, in one sentence; empty where everything was."""
        if self.part == self.problem:
            return ""
        names = [name for name in self.problem.EXTENTS if getattr(self.part, name) != getattr(self.problem, name)]
        size = ", ".join(f"{name} = {getattr(self.part, name):,} of {getattr(self.problem, name):,}" for name in names)
        return f"counts are of the whole problem; numbers were computed and checked for a part of it ({size})"


def simulate(
    kernel: Kernel, problem: Problem, schedule: Any, machine: Machine, budget_s: float = BUDGET, seed: int = 0
) -> Simulation:
    """Simulate and check a kernel; raises InputError or ScheduleError for what the kernel refuses."""
    kernel.require_arch(problem, machine)
    require_room(problem, machine)
    theory = kernel.module.theory(problem, schedule, machine)
    part = problem.part(budget_s * (_TENSOR_RATE if theory.mma_flops else _SCALAR_RATE))
    verified = lab.verify(kernel, part, schedule, machine, simulator(kernel, machine), seed)
    whole = kernel.count(problem, schedule, machine)
    return Simulation(
        kernel=kernel.name,
        problem=problem,
        part=part,
        schedule=schedule,
        check=verified.check,
        theory=theory,
        simulated=whole,
        disagreements={**verified.disagreements, **disagreements(theory, whole)},
    )


def require_room(problem: Problem, machine: Machine) -> None:
    """Raise InputError where the problem's arrays do not fit into the machine's HBM."""
    total = problem.bytes["total"]
    if total > machine.hbm_bytes:
        raise InputError(f"this problem has {total:,} B; the {machine.title} has {machine.hbm_bytes:,} B of HBM")
