"""How a problem runs on a machine, worked out once: its kernel, its schedule, its launches."""

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lab.choice import best_guesses, choose
from lab.execute.bound import Bound, SimulatedBound
from lab.kernel import Bills, Kernel
from lab.problems import Problem
from sim.counts import Counts
from sim.errors import InputError, KernelError
from sim.launch import Launch
from sim.machine import Machine


@dataclass(frozen=True, eq=False)
class Plan:
    """A problem with the kernel and schedule that solve it on a machine, and the launches that these make."""

    problem: Problem
    machine: Machine
    kernel: Kernel
    schedule: Any
    launches: tuple[Launch, ...]

    @cached_property
    def theory(self) -> Counts:
        """Closed-form counts of all launches together."""
        counts: Counts = self.kernel.module.theory(self.problem, self.schedule, self.machine)
        return counts

    def bills(self, clock: str) -> Bills:
        """What all launches together are predicted to take, by a clock of `lab.cards.CLOCKS`."""
        return self.kernel.bills(self.problem, self.schedule, self.machine, clock)

    def predicted_us(self, clock: str) -> float:
        """Microseconds of all launches together by that clock."""
        return self.bills(clock).us

    def bind(self, arrays: Mapping[str, Any], device: int | None = 0) -> Bound:
        """The launches with arrays by name, on a GPU by its number, or on the simulated chip where `device` is None.

        Arrays lie where they are used: in NumPy for the simulated chip, else on that GPU, dense, with the bits that the
        problem's formats ask for. Some may be bound later; workspaces are made here. Raises InputError for an array
        that is not what its launch describes, NoDeviceError where the GPU cannot run the kernel, KernelError where
        it does not compile.
        """
        if device is None:
            return SimulatedBound(self.kernel, self.launches, self.machine).bind(arrays)
        from lab.execute.device import DeviceBound  # loaded on first use: the simulated chip needs no GPU library

        return DeviceBound(self.launches, self.machine, device).bind(arrays)


def plan(problem: Problem, machine: Machine, schedule: Any = None, kernel: Kernel | None = None) -> Plan:
    """The plan of the kernel and schedule that `lab.choice` takes, of a kernel's best guess, or of its `schedule`.

    Raises InputError or ScheduleError where nothing runs so.
    """
    if kernel is None:
        if schedule is not None:
            raise InputError("a schedule is one kernel's: name the kernel too")
        return Plan(problem, machine, *choose(problem, machine))
    if schedule is None:
        schedule = kernel.best_guess(problem, machine)
    return Plan(problem, machine, kernel, schedule, kernel.launches(problem, schedule, machine))


def compiling(found: Plan) -> Plan:
    """The plan, or where its kernel does not compile, with a warning, that of the fastest best guess that does.

    Raises KernelError, the plan's own, where none does.
    """
    from lab.compile import compile_launch  # loaded on first use: planning loads no compiler

    def compiled(plan: Plan) -> Plan:
        for launch in plan.launches:
            compile_launch(launch, plan.machine)
        return plan

    try:
        return compiled(found)
    except KernelError as error:
        for guess in sorted(best_guesses(found.problem, found.machine), key=lambda guess: guess.us):
            with suppress(KernelError):
                other = compiled(Plan(found.problem, found.machine, guess.kernel, guess.schedule, guess.launches))
                said = str(error).splitlines()[0]
                warnings.warn(f"{guess.kernel.name} takes the place of {found.kernel.name}: {said}", stacklevel=2)
                return other
        raise
