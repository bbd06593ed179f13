"""What the checks are worth: mutants of a kernel's own PTX, run in the emulator, are caught, harmless, or missed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import reduce
from math import prod
from operator import add
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lab.compile import compile_launch
from lab.kernel import Kernel
from lab.problems import Problem
from lab.verify import compare, guarded_outputs, guards_intact, workspaces
from sim.counts import Counts, disagreements
from sim.emulator import EmulatorError, Hazard, run
from sim.emulator.mutants import mutants
from sim.launch import Launch, TensorMap
from sim.machine import Machine

NO_BOX = 16  # bytes: the unit of a bulk copy, for a launch without tensor maps
_PATIENCE = 20  # a mutant that executes this many times the instructions of the right kernel counts as endless


class Verdict(StrEnum):
    """What became of a mutant."""

    CAUGHT = "caught"
    HARMLESS = "harmless"
    MISSED = "missed"


@dataclass(frozen=True)
class Judged:
    """A mutant and what became of it; `why` is what caught it, or why there was nothing to catch."""

    family: str
    change: str
    source: str
    verdict: Verdict
    why: str

    def as_dict(self) -> dict[str, str]:
        return {name: str(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Outcome:
    """One emulated run: what it reported and counted, what it left in its outputs and workspaces."""

    hazards: tuple[Hazard, ...]
    counts: Counts
    outputs: dict[str, bytes]
    passed: bool
    steps: int
    reads: frozenset[tuple[int, ...]]


class Specimen(Protocol):
    """Launches that can run other PTX in place of their own, and what is visibly wrong with a run."""

    name: str
    ptx: list[str]  # of each part
    parts: list[tuple[str, int]]  # entry, and the smallest box of its tensor maps in bytes

    def run(self, ptx: Sequence[str], seed: int, max_steps: int = ..., check: bool = ...) -> Outcome: ...

    def complaint(self, outcome: Outcome) -> str | None: ...


def judge_mutants(
    kernel: Kernel, problem: Problem, schedule: Any, machine: Machine, seeds: int = 3, share: tuple[int, int] = (0, 1)
) -> Iterator[Judged]:
    """Every mutant of every launch of a kernel, one by one; what the first seed catches is run on no other.

    Of a share (i, n) an n-th of them, as `sim.emulator.mutants` deals them. Raises InputError or ScheduleError for what
    the kernel refuses, and ValueError where the kernel itself has hazards, a wrong result or other counts than theory.
    """
    return judge(_KernelSpecimen(kernel, problem, schedule, machine), seeds, share)


def judge(specimen: Specimen, seeds: int, share: tuple[int, int] = (0, 1)) -> Iterator[Judged]:
    """The same of any launches."""
    right = [specimen.run(specimen.ptx, seed) for seed in range(seeds)]
    for outcome in right:
        if wrong := specimen.complaint(outcome):
            raise ValueError(f"{specimen.name} itself is wrong: {wrong}")
    exact = all(outcome.outputs == right[0].outputs for outcome in right)  # not where atomics choose
    patience = _PATIENCE * max(outcome.steps for outcome in right)
    for at, (entry, box_bytes) in enumerate(specimen.parts):

        def swapped(text: str, at: int = at) -> list[str]:
            return [*specimen.ptx[:at], text, *specimen.ptx[at + 1 :]]

        def reaches(probe: str, swapped: Callable[[str], list[str]] = swapped) -> bool:
            return any(h.kind == "trap" for h in specimen.run(swapped(probe), 0, patience, check=False).hazards)

        for mutant in mutants(specimen.ptx[at], entry, box_bytes, reaches, share):
            outcomes = (specimen.run(swapped(mutant.ptx), seed, patience) for seed in range(seeds))
            verdict, why = _judge(specimen, right, outcomes, exact)
            if verdict is not Verdict.CAUGHT and not reaches(mutant.probe):
                same = "no outcome of the comparison changes" if mutant.family == "bound" else "it is never executed"
                verdict, why = Verdict.HARMLESS, f"{same} on this problem"
            yield Judged(mutant.family, mutant.change, str(mutant.location), verdict, why)


def smallest_box(launch: Launch) -> int:
    """Bytes of the smallest box of a launch's tensor maps."""
    sizes = {a.name: a.storage.itemsize for a in launch.arrays}
    boxes = [prod(m.box) * sizes[m.array] for m in launch.arguments if isinstance(m, TensorMap)]
    return min(boxes, default=NO_BOX)


class _KernelSpecimen:
    """A kernel's launches on one problem, ready to run other PTX in place of their own."""

    def __init__(self, kernel: Kernel, problem: Problem, schedule: Any, machine: Machine) -> None:
        self.name = kernel.name
        self.launches = kernel.launches(problem, schedule, machine)
        self.parts = [(launch.entry, smallest_box(launch)) for launch in self.launches]
        self.ptx = [compile_launch(launch, machine, "ptx").path.read_text(encoding="utf-8") for launch in self.launches]
        self._theory = kernel.module.theory(problem, schedule, machine)
        self._problem, self._machine = problem, machine
        self._inputs = problem.draw(np.random.default_rng(0))
        self._expected = problem.reference(self._inputs)

    def run(self, ptx: Sequence[str], seed: int, max_steps: int = 1 << 34, check: bool = True) -> Outcome:
        """The launches, one after the other, with these modules."""
        guarded = guarded_outputs(self.launches)
        written = {**workspaces(self.launches), **{name: inside for name, (_, inside) in guarded.items()}}
        arrays: dict[str, NDArray] = {**self._inputs, **written}
        done = [
            run(text, launch, arrays, self._machine, seed=seed, check=check, max_steps=max_steps)
            for text, launch in zip(ptx, self.launches, strict=True)
        ]
        intact = all(guards_intact(whole) for whole, _ in guarded.values())
        return Outcome(
            hazards=tuple(hazard for one in done for hazard in one.hazards),
            counts=reduce(add, (one.counts for one in done)),
            outputs={name: array.tobytes() for name, array in written.items()},
            passed=compare(self._problem, self._expected, arrays, intact).passed,
            steps=sum(one.statistics.warp_instructions for one in done),
            reads=frozenset((at, *pair) for at, one in enumerate(done) for pair in one.reads),
        )

    def complaint(self, outcome: Outcome) -> str | None:
        """What is visibly wrong with a run, or None."""
        if outcome.hazards:
            return ", ".join(dict.fromkeys(hazard.kind for hazard in outcome.hazards))
        if not outcome.passed:
            return "wrong result"
        differ = disagreements(self._theory, outcome.counts)
        return f"wrong counts: {', '.join(differ)}" if differ else None


def _judge(
    specimen: Specimen, right: Sequence[Outcome], outcomes: Iterator[Outcome], exact: bool
) -> tuple[Verdict, str]:
    """Caught by what any seed shows; harmless where no part of a CTA reads from another than in the right kernel."""
    same, reads = exact, frozenset[tuple[int, ...]]().union(*(outcome.reads for outcome in right))
    for expected in right:
        try:
            outcome = next(outcomes)
        except EmulatorError as error:
            return Verdict.CAUGHT, f"refused: {error}"
        if complaint := specimen.complaint(outcome):
            return Verdict.CAUGHT, complaint
        if exact and outcome.outputs != expected.outputs:
            return Verdict.CAUGHT, "other result bits"
        same &= outcome.reads <= reads
    if same:
        return Verdict.HARMLESS, "every read finds what the same part of a CTA wrote, and every result bit is the same"
    return Verdict.MISSED, "reads find what other parts of a CTA wrote, and nothing was reported"
