"""Is a kernel right? Its result against the reference and its counts against theory, on any chip."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from math import inf, isfinite
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Kernel
from lab.problems import Problem, operands
from sim.counts import Counts, disagreements
from sim.formats import decode
from sim.launch import Array, Launch, Role
from sim.machine import Machine

Execute = Callable[[tuple[Launch, ...], dict[str, NDArray]], Counts]  # runs launches in order, fills the output arrays

GUARD = 64  # elements before and after every output, which no kernel may touch


@dataclass(frozen=True)
class Check:
    """A result compared with its reference; `error` is the largest |difference| / bound and passes up to 1.

    `relative_error` is ||y - reference|| / ||reference||, in the Euclidean norm over all elements.
    """

    error: float
    mismatches: int
    first_mismatch: tuple[int, ...] | None
    guards_intact: bool
    rows_checked: int
    relative_error: float

    @property
    def passed(self) -> bool:
        return self.mismatches == 0 and self.guards_intact


@dataclass(frozen=True)
class Verification:
    """What `verify` found: the check of the result, and the counts of theory and of the chip that ran it."""

    kernel: str
    problem: Problem
    schedule: Any
    check: Check
    theory: Counts
    counted: Counts
    disagreements: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.check.passed and not self.disagreements


def simulator(kernel: Kernel, machine: Machine) -> Execute:
    """The executor that runs a kernel's tile simulation."""

    def execute(launches: tuple[Launch, ...], arrays: dict[str, NDArray]) -> Counts:
        return reduce(add, (kernel.module.simulate(launch, arrays, machine) for launch in launches))

    return execute


def verify(
    kernel: Kernel, problem: Problem, schedule: Any, machine: Machine, execute: Execute, seed: int = 0
) -> Verification:
    """Run a kernel on fresh random inputs and check it.

    `execute` is the chip: `simulator(kernel, machine)`, the emulator's or the GPU's. Raises InputError or ScheduleError
    for a problem or schedule the kernel refuses.
    """
    launches = kernel.launches(problem, schedule, machine)
    inputs = problem.draw(np.random.default_rng(seed))
    outputs = {a.name: a for launch in launches for a in launch.arrays if a.role is Role.OUT}
    guarded = {name: guarded_array(a) for name, a in outputs.items()}
    arrays = {**inputs, **workspaces(launches), **{name: inside for name, (_, inside) in guarded.items()}}
    counted = execute(launches, arrays)
    theory = kernel.module.theory(problem, schedule, machine)
    intact = all(guards_intact(whole) for whole, _ in guarded.values())
    check = compare(problem, inputs, arrays["y"], intact)
    return Verification(kernel.name, problem, schedule, check, theory, counted, disagreements(theory, counted))


def scratch(launches: tuple[Launch, ...]) -> dict[str, Array]:
    """The array arguments that are not the problem's own: workspaces, and what one launch writes for the next."""
    problem = launches[0].problem
    own = operands.inputs(problem).keys() | operands.outputs(problem).keys()
    return {a.name: a for launch in launches for a in launch.arrays if a.name not in own}


def workspaces(launches: tuple[Launch, ...]) -> dict[str, NDArray]:
    """Zeroed arrays for all that the launches take beside the problem's own."""
    return {name: np.zeros(array.shape, array.storage) for name, array in scratch(launches).items()}


def guarded_array(array: Array) -> tuple[NDArray, NDArray]:
    """(whole, inside): an output filled with NaN bits between two guard bands of the same bits."""
    size = int(np.prod(array.shape))
    whole = np.full((size + 2 * GUARD) * array.storage.itemsize, 0xFF, np.uint8).view(array.storage)
    return whole, whole[GUARD : GUARD + size].reshape(array.shape)


def guards_intact(whole: NDArray) -> bool:
    """Whether nothing wrote outside the output."""
    bits = whole.view(np.uint8)
    edge = GUARD * whole.itemsize
    return bool((bits[:edge] == 0xFF).all() and (bits[-edge:] == 0xFF).all())


def compare(problem: Problem, inputs: Mapping[str, NDArray], y: NDArray, intact: bool = True) -> Check:
    """Elementwise comparison of an output with the problem's reference; NaN and poison never pass."""
    return compare_with(problem.reference(inputs), y, problem.output, intact)


def compare_with(expected: tuple[NDArray, NDArray], y: NDArray, output: str, intact: bool = True) -> Check:
    """Elementwise comparison of an output of that format with (reference, bound), computed once for many outputs."""
    reference, bound = expected
    difference = np.abs(decode(y, output).astype(reference.dtype) - reference)
    bad = ~(difference <= bound)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(difference == 0, 0.0, difference / bound)
    first = tuple(int(i) for i in np.argwhere(bad)[0]) if bad.any() else None
    error = float("inf") if np.isnan(ratio).any() else float(ratio.max(initial=0.0))
    return Check(error, int(bad.sum()), first, intact, reference.shape[0], _relative(difference, reference))


def _relative(difference: NDArray, reference: NDArray) -> float:
    """||difference|| / ||reference||; infinite where there is NaN, or an error where all should be zero."""
    whole, off = (float(np.linalg.norm(a.astype(np.float64))) for a in (reference, difference))
    return 0.0 if off == 0 else off / whole if whole and isfinite(off) else inf
