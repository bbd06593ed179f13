"""Is a kernel right? Its result against the reference and its counts against theory, on any chip."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab import catalog
from lab.kernel import Kernel, parse_schedule
from lab.problems import Estimate, Problem
from sim.counts import Counts, disagreements
from sim.formats import FORMATS, decode
from sim.launch import Array, Launch, Role
from sim.machine import H100, Machine
from sim.machine import machine as machine_named

Execute = Callable[[tuple[Launch, ...], dict[str, NDArray]], Counts]  # runs launches in order, fills the output arrays

GUARD = 64  # elements before and after every output, which no kernel may touch


@dataclass(frozen=True)
class Check:
    """Outputs compared with their references; `error` is the largest |difference| / bound and passes up to 1.

    `first_mismatch` is an index into the output called `mismatched`. `relative_error` is ||y - reference|| /
    ||reference|| of the output in which it is largest, in the Euclidean norm over all elements.
    """

    error: float
    mismatches: int
    first_mismatch: tuple[int, ...] | None
    guards_intact: bool
    rows_checked: int
    relative_error: float
    mismatched: str = ""

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
        return kernel.simulate(launches, arrays, machine)

    return execute


def verify(
    kernel: Kernel | str,
    problem: Problem,
    schedule: Any = "",
    machine: Machine | str = H100,
    execute: Execute | None = None,
    seed: int = 0,
) -> Verification:
    """Run a kernel, or the one of that name, on fresh random inputs and check it.

    A schedule in words, such as "stages=4", is the kernel's best guess with those fields. `execute` is the chip:
    `simulator(kernel, machine)` by default, or the emulator's or the GPU's. Raises InputError or ScheduleError for a
    problem or schedule the kernel refuses.
    """
    if not isinstance(kernel, Kernel):
        kernel = catalog.get(kernel)
    if not isinstance(machine, Machine):
        machine = machine_named(machine)
    if not isinstance(schedule, kernel.module.Schedule):
        schedule = parse_schedule(kernel, schedule, problem, machine)
    if execute is None:
        execute = simulator(kernel, machine)
    launches = kernel.launches(problem, schedule, machine)
    inputs = problem.draw(np.random.default_rng(seed))
    guarded = guarded_outputs(launches)
    outputs = {name: inside for name, (_, inside) in guarded.items()}
    counted = execute(launches, {**inputs, **workspaces(launches), **outputs})
    theory = kernel.module.theory(problem, schedule, machine)
    intact = all(guards_intact(whole) for whole, _ in guarded.values())
    check = compare(problem, problem.reference(inputs), outputs, intact)
    return Verification(kernel.name, problem, schedule, check, theory, counted, disagreements(theory, counted))


def scratch(launches: tuple[Launch, ...]) -> dict[str, Array]:
    """The array arguments that are not the problem's own: workspaces, and what one launch writes for the next."""
    own = {*launches[0].problem.inputs, *launches[0].problem.outputs}
    return {a.name: a for launch in launches for a in launch.arrays if a.name not in own}


def workspaces(launches: tuple[Launch, ...]) -> dict[str, NDArray]:
    """Zeroed arrays for all that the launches take beside the problem's own."""
    return {name: np.zeros(array.shape, array.storage) for name, array in scratch(launches).items()}


def guarded_outputs(launches: tuple[Launch, ...]) -> dict[str, tuple[NDArray, NDArray]]:
    """(whole, inside) of every output of the launches."""
    return {a.name: guarded_array(a) for launch in launches for a in launch.arrays if a.role is Role.OUT}


def guarded_array(array: Array) -> tuple[NDArray, NDArray]:
    """(whole, inside): an output filled with NaN bits between two guard bands of the same bits."""
    size = prod(array.shape)
    whole = np.full((size + 2 * GUARD) * array.storage.itemsize, 0xFF, np.uint8).view(array.storage)
    return whole, whole[GUARD : GUARD + size].reshape(array.shape)


def guards_intact(whole: NDArray) -> bool:
    """Whether nothing wrote outside the output."""
    return _poison(whole[:GUARD]) and _poison(whole[-GUARD:])


def compare(
    problem: Problem, expected: Mapping[str, Estimate], outputs: Mapping[str, NDArray], intact: bool = True
) -> Check:
    """All outputs of a problem, the poisoned storage that a kernel wrote, beside what is expected of them.

    Behind the rows that are written, all must still be poison.
    """
    checks = []
    for name, operand in problem.outputs.items():
        rows = problem.written(name)
        intact &= _poison(outputs[name][rows:])
        checks.append(compare_output(expected[name], outputs[name][:rows], operand.format, name))
    return replace(joined(checks), guards_intact=intact)


def joined(checks: Sequence[Check]) -> Check:
    """The checks of several outputs as one."""
    first = next((check for check in checks if check.first_mismatch is not None), checks[0])
    return replace(
        first,
        error=max(check.error for check in checks),
        mismatches=sum(check.mismatches for check in checks),
        guards_intact=all(check.guards_intact for check in checks),
        relative_error=max(check.relative_error for check in checks),
    )


def compare_output(expected: Estimate, found: NDArray, form: str, name: str = "") -> Check:
    """Elementwise comparison of an output in a format with its reference; poison never passes.

    Where the reference is infinite or NaN, so must the output be.
    """
    reference, bound = expected
    values = (decode(found, form) if form in FORMATS else found).astype(reference.dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = np.abs(values - reference)
        alike = np.where(np.isnan(reference), np.isnan(values), values == reference)
        difference = np.where(alike, 0.0, difference)
        bad = ~(difference <= np.where(np.isfinite(reference), bound, 0.0))
        ratio = np.where(difference == 0, 0.0, difference / bound)
    first = tuple(int(i) for i in np.argwhere(bad)[0]) if bad.any() else None
    error = inf if np.isnan(ratio).any() else float(ratio.max(initial=0.0))
    return Check(
        error, int(bad.sum()), first, True, len(reference), _relative(difference, reference), name if first else ""
    )


def _poison(elements: NDArray) -> bool:
    return bool((np.ascontiguousarray(elements).view(np.uint8) == 0xFF).all())


def _relative(difference: NDArray, reference: NDArray) -> float:
    """||difference|| / ||reference||; infinite where there is NaN, or an error where all should be zero."""
    finite = np.isfinite(reference)
    whole, off = (float(np.linalg.norm(a[finite].astype(np.float64))) for a in (reference, difference))
    return 0.0 if off == 0 else off / whole if whole and isfinite(off) else inf
