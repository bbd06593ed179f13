"""What a kernel is: the contract that each pair of files in lab/kernels/ keeps."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from functools import cached_property, reduce
from inspect import getmembers
from math import lcm
from operator import add
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from numpy.typing import NDArray

from lab.cards.fits import launch_us
from lab.problems import Problem
from sim.bound import bills_us
from sim.cache.walk import L2, Requests, reread
from sim.counts import Counts
from sim.errors import InputError, ScheduleError
from sim.formats import FORMATS
from sim.launch import Launch, TensorMap
from sim.machine import Machine
from sim.turns import one_thread


@dataclass(frozen=True)
class Solves:
    """Which problems a kernel takes: kind, formats, divisibility, the GPU architecture it needs.

    `formats` are those of the problem's FORMAT field. Options have the value that the format implies, with activations
    in that format itself where they must be `alike`; `options` are the unusual values it takes besides, all of a range
    where it is one, `required` the only ones it takes. `row_bytes` divides the bytes of every row of the problem's
    arrays; `multiple_of` divides extents, which are `at_most` so large. `arch_of` names the formats that need a newer
    architecture than the others.
    `after` names the kernel it improves on. `facts` are the problem's properties that the device code is compiled
    for; a format name becomes a C++ type, an integer or a flag a constant.
    """

    problem: type[Problem]
    formats: tuple[str, ...]
    arch: str
    multiple_of: Mapping[str, int] = field(default_factory=dict)
    row_bytes: int = 1
    why_multiple: str = ""
    after: str | None = None
    alike: bool = False
    options: Mapping[str, tuple[Any, ...] | range] = field(default_factory=dict)
    required: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    at_most: Mapping[str, int] = field(default_factory=dict)
    arch_of: Mapping[str, str] = field(default_factory=dict)
    facts: tuple[str, ...] = ("weights", "activations", "output")

    def multiples(self, problem: Problem) -> dict[str, int]:
        """What each extent must be a multiple of, for the formats of a problem."""
        found = dict(self.multiple_of)
        for name, divisor in (problem.multiples(self.row_bytes) if self.row_bytes > 1 else {}).items():
            found[name] = lcm(found.get(name, 1), divisor)
        return found

    def values(self, problem: Problem) -> dict[str, tuple[Any, ...]]:
        """The values that this kernel takes of each option, for the formats of a problem; the usual one first.

        Of a range, its first value and its last.
        """
        usual = problem.usual(self.alike)
        found = {}
        for name in problem.OPTIONS:
            more = self.options.get(name, ())
            ends = (more[0], more[-1]) if isinstance(more, range) else more
            found[name] = tuple(self.required.get(name, (getattr(usual, name), *ends)))
        return found

    def refusal(self, problem: Problem) -> str | None:
        """One sentence why this kernel cannot take the problem, or None."""
        if not isinstance(problem, self.problem):
            return f"solves {self.problem.kind} problems, not {getattr(problem, 'kind', type(problem).__name__)}"
        form = getattr(problem, problem.FORMAT)
        if form not in self.formats:
            return f"takes {problem.FORMAT} in {' or '.join(self.formats)}, not {form}"
        for name, taken in self.values(problem).items():
            value = getattr(problem, name)
            if value not in taken and value not in self.options.get(name, ()):
                return f"takes {name} {' or '.join(map(str, taken))} with {problem.FORMAT} in {form}, not {value}"
        for name, most in self.at_most.items():
            if getattr(problem, name) > most:
                return f"takes {name} up to {most:,}; {name} = {getattr(problem, name):,}"
        for name, divisor in self.multiples(problem).items():
            if getattr(problem, name) % divisor:
                value = getattr(problem, name)
                return f"needs {name} to be a multiple of {divisor} ({self.why_multiple}); {name} = {value}"
        return None

    def needs(self, problem: Problem | None = None) -> str:
        """The architecture for a problem's format, or for the least demanding of all."""
        return self.arch if problem is None else self.arch_of.get(getattr(problem, problem.FORMAT), self.arch)

    def runs_on(self, arch: str, problem: Problem | None = None) -> bool:
        """Whether a GPU of an architecture has what this needs for the problem's format, or for some format."""
        return provides(arch, self.needs(problem))


def provides(arch: str, needs: str) -> bool:
    """Whether an architecture has what another one has: only the same where "a" asks for it, else any newer."""
    return arch == needs if needs.endswith("a") else int(arch.strip("sm_a")) >= int(needs.strip("sm_"))


class Schedule(Protocol):
    """How a kernel runs: a frozen dataclass of integers and enums; integer properties are derived constants."""

    def fits(self, problem: Any, machine: Machine) -> None:
        """Raise ScheduleError, showing both sides, where this schedule cannot run the problem on the machine."""


class KernelModule(Protocol):
    """What lab/kernels/<family>/<stem>.py defines."""

    __doc__: str | None
    SOLVES: Solves
    Schedule: type

    def candidates(self, problem: Any, machine: Machine) -> Iterator[Any]:
        """Legal schedules worth trying, best guess first.

        There is one for every problem that the kernel solves; where none is legal, one whose `fits` says why.
        """

    def launch(self, problem: Any, schedule: Any, machine: Machine) -> tuple[Launch, ...]:
        """The launches that solve every problem within an envelope, in order."""

    def theory(self, problem: Any, schedule: Any, machine: Machine) -> Counts:
        """Closed-form counts of all launches together."""

    def simulate(self, launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
        """Run one launch's tile schedule on the CPU and write the output arrays.

        Where `arrays` holds the problem's index arrays alone, or nothing if it has none, only count.
        """


RANKING_CLOCK = "graph"  # by which schedules and kernels are compared: launches of a step follow one another
NOT_HIDDEN = "not hidden behind it"  # behind the longest of the bills that are paid side by side


class Bills(NamedTuple):
    """What launches are predicted to take: microseconds in all, and of each part of them.

    Parts `apart` are paid one after another and beside no other, the rest side by side, as their kernel's model says.
    """

    us: float
    parts: Mapping[str, float]
    apart: tuple[str, ...] = ("launch",)

    @property
    def binds(self) -> str:
        """The part that takes longest."""
        return max(self.parts, key=self.parts.__getitem__)

    @property
    def waterfall(self) -> dict[str, float]:
        """Where each microsecond goes; their sum is `us`.

        The parts paid by themselves, the longest of the others, and what of these does not hide behind it.
        """
        found = {name: self.parts[name] for name in self.apart}
        beside = {name: us for name, us in self.parts.items() if name not in found}
        if beside:
            longest = max(beside, key=beside.__getitem__)
            found[longest] = min(beside[longest], self.us - sum(found.values()))
        return {**found, NOT_HIDDEN: self.us - sum(found.values())}

    def as_dict(self) -> dict[str, Any]:
        """As `lab check --json` and `lab explain --json` have it."""
        return {"us": self.us, "binds": self.binds, "parts": dict(self.parts), "waterfall": self.waterfall}


@runtime_checkable
class Predicts(Protocol):
    """A kernel's description that has a model of its own time, where the largest of its bills says too little."""

    def bills(self, problem: Any, schedule: Any, machine: Machine, clock: str) -> Bills:
        """Of all launches together, by a clock of `lab.cards.CLOCKS`."""


@runtime_checkable
class Asks(Protocol):
    """A kernel's description that knows in which order its launches ask L2 for what they read."""

    def requested(self, launch: Launch, machine: Machine) -> Requests:
        """All requests of one launch."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of the catalog: its name, its family, its two files."""

    name: str
    family: str
    source: Path
    module: KernelModule

    @property
    def solves(self) -> Solves:
        return self.module.SOLVES

    @property
    def adds(self) -> str:
        """What it adds to its predecessor: the first line of its module docstring."""
        return (self.module.__doc__ or "").strip().splitlines()[0]

    def require(self, problem: Problem) -> None:
        """Raise InputError where this kernel cannot take the problem."""
        refusal = self.solves.refusal(problem)
        if refusal:
            raise InputError(f"{self.name} {refusal}")

    def require_arch(self, problem: Problem, machine: Machine) -> None:
        """Raise InputError where this kernel needs another architecture for the problem than the machine's."""
        if not self.solves.runs_on(machine.arch, problem):
            needs = self.solves.needs(problem)
            raise InputError(f"{self.name} needs architecture {needs}; the {machine.title} is {machine.arch}")

    def best_guess(self, problem: Problem, machine: Machine) -> Any:
        """The first candidate schedule; raises InputError or ScheduleError where there is none."""
        self.require(problem)
        self.require_arch(problem, machine)
        for schedule in self.module.candidates(problem.envelope(), machine):
            return schedule
        raise ScheduleError(f"{self.name} has no legal schedule for {problem} on the {machine.title}")

    def launches(self, problem: Problem, schedule: Any, machine: Machine) -> tuple[Launch, ...]:
        """The checked launches: raises InputError or ScheduleError before anything runs."""
        self.require(problem)
        envelope = problem.envelope()
        schedule.fits(envelope, machine)
        return self.module.launch(envelope, schedule, machine)

    def count(self, problem: Problem, schedule: Any, machine: Machine) -> Counts:
        """What the tile simulator counts of all launches together, without numbers."""
        return self.simulate(self.launches(problem, schedule, machine), problem.indices(), machine)

    def simulate(self, launches: tuple[Launch, ...], arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
        """What the tile simulator counts of all launches together; those of a problem with numbers write its outputs.

        One thread at a time: each simulation uses all cores.
        """
        with one_thread:
            return reduce(add, (self.module.simulate(launch, arrays, machine) for launch in launches))

    def reread(self, problem: Problem, schedule: Any, l2: L2, machine: Machine) -> int | None:
        """Bytes that HBM reads more than once where the machine has that L2; None where the order is not described."""
        if not isinstance(self.module, Asks):
            return None
        launches = self.launches(problem, schedule, machine)
        return sum(reread(self.module.requested(launch, machine), l2) for launch in launches)

    def bills(self, problem: Problem, schedule: Any, machine: Machine, clock: str) -> Bills:
        """By the kernel's own model; without one, an empty launch and the largest bill of its closed-form counts."""
        if isinstance(self.module, Predicts):
            return self.module.bills(problem, schedule, machine, clock)
        theory = self.module.theory(problem, schedule, machine)
        ctas = sum(launch.ctas for launch in self.launches(problem, schedule, machine))
        paid = bills_us(theory, problem.unit, machine, ctas)
        launch = launch_us(machine, clock)
        return Bills(launch + max(paid.values()), {"launch": launch, **paid})

    def predicted_us(self, problem: Problem, schedule: Any, machine: Machine, clock: str) -> float:
        """Microseconds of all launches by a clock: the only thing that is called a prediction."""
        return self.bills(problem, schedule, machine, clock).us


def parse_schedule(kernel: Kernel, text: str, problem: Problem, machine: Machine) -> Any:
    """The schedule "block_m=128,stages=4": the best guess with those fields replaced; raises InputError."""
    base = kernel.best_guess(problem, machine)
    known = {f.name: f.type for f in fields(base)}
    values: dict[str, Any] = {f.name: getattr(base, f.name) for f in fields(base)}
    if not isinstance(text, str):
        raise InputError(f"{kernel.name} takes a schedule of its own or words such as stages=4; got {text!r:.40}")
    given: set[str] = set()
    for word in filter(None, text.split(",")):
        name, _, value = word.partition("=")
        if name in given:
            raise InputError(f"schedule field {name} is given twice")
        given.add(name)
        if name not in known:
            raise InputError(f"{kernel.name} has no schedule field {name!r}; its fields: {', '.join(known)}")
        current = values[name]
        try:
            values[name] = type(current)(value) if isinstance(current, Enum) else int(value)
        except ValueError:
            legal = ", ".join(str(e.value) for e in type(current)) if isinstance(current, Enum) else "an integer"
            raise InputError(f"schedule field {name} takes {legal}; got {value!r}") from None
    return kernel.module.Schedule(**values)


def schedule_fields(schedule: Any) -> dict[str, int | str]:
    """The schedule's own fields as plain values, for records and tables."""
    return {f.name: _plain(getattr(schedule, f.name)) for f in fields(schedule)}


def recorded_schedule(kernel: Kernel, values: Mapping[str, int | str]) -> Any:
    """The schedule whose `schedule_fields` these are; raises InputError or ScheduleError where there is none today.

    A field that is younger than the values takes its default, with which a kernel does what it did without the field.
    """
    types = {f.name: cast(type, f.type) for f in fields(kernel.module.Schedule)}
    needed = {f.name for f in fields(kernel.module.Schedule) if f.default is MISSING}
    if not needed <= set(values) <= set(types):
        raise InputError(f"{kernel.name} has the schedule fields {', '.join(types)}; given are {', '.join(values)}")
    try:
        return kernel.module.Schedule(**{name: types[name](value) for name, value in values.items()})
    except ValueError as error:
        raise InputError(f"{kernel.name} has no such schedule: {error}") from error


def constants(schedule: Any) -> dict[str, int]:
    """What the device code sees as `schedule::`: the fields and every integer property."""
    properties = getmembers(type(schedule), lambda member: isinstance(member, property | cached_property))
    derived = [name for name, _ in properties]
    names = [f.name for f in fields(schedule)] + derived
    return {name: cast(int, _plain(getattr(schedule, name))) for name in names}


def generated_header(launch: Launch, facts: tuple[str, ...]) -> str:
    """The text of "schedule.cuh", the only constants that device code gets from Python.

    `schedule::` and `problem::`, and for each two-dimensional tensor map its `box::<map>::` rows, columns, swizzle.
    """
    lines = ["// Generated from the launch's schedule and problem.", "#pragma once", "#include <ptx/types.cuh>", ""]
    lines.append("namespace schedule {")
    lines += [f"constexpr int {name} = {int(value)};" for name, value in constants(launch.schedule).items()]
    lines += ["}  // namespace schedule", "", "namespace problem {"]
    for fact in facts:
        value = getattr(launch.problem, fact)
        if value in FORMATS:
            lines.append(f"using {fact} = {'int4x2' if FORMATS[value].group else value};")
        else:
            lines.append(f"constexpr {'bool' if isinstance(value, bool) else 'int'} {fact} = {int(value)};")
    lines += ["}  // namespace problem", ""]
    for tensor in launch.arguments:
        if isinstance(tensor, TensorMap) and len(tensor.box) == 2:
            sizes = {"rows": tensor.box[0], "columns": tensor.box[1], "swizzle": tensor.swizzle}
            inside = " ".join(f"constexpr int {name} = {value};" for name, value in sizes.items())
            lines.append(f"namespace box::{tensor.name} {{ {inside} }}")
    return "\n".join([*lines, ""])


def require_shared(nbytes: int, what: str, machine: Machine) -> None:
    """Raise ScheduleError where a block would need more shared memory than the machine gives one."""
    if nbytes > machine.shared_bytes_per_block:
        raise ScheduleError(
            f"{what} need {nbytes:,} B of shared memory; a block on the {machine.title} has "
            f"{machine.shared_bytes_per_block:,} B"
        )


def require_resident(ctas: int, shared_bytes: int, threads: int, registers: int, machine: Machine) -> None:
    """Raise ScheduleError where an SM cannot hold so many CTAs of so many threads, `registers` each, at once."""
    shared = ctas * (shared_bytes + machine.reserved_shared_bytes)
    if shared > machine.shared_bytes_per_sm:
        raise ScheduleError(
            f"{ctas} CTAs need {shared:,} B of shared memory; an SM of the {machine.title} has "
            f"{machine.shared_bytes_per_sm:,} B"
        )
    warps = 4 * -(-ctas * -(-threads // 32) // 4)  # each quarter of an SM has a quarter of its registers
    if 32 * warps * registers > machine.registers_per_sm:
        raise ScheduleError(
            f"{warps} warps of {registers} registers a thread need {32 * warps * registers:,}; an SM of the "
            f"{machine.title} has {machine.registers_per_sm:,}"
        )


def require_threads(ctas: int, threads: int, machine: Machine) -> None:
    """Raise ScheduleError where a block cannot have so many threads, or an SM not hold `ctas` CTAs of them."""
    if threads > machine.max_block_threads:
        raise ScheduleError(
            f"a CTA of {threads:,} threads; a block on the {machine.title} has at most {machine.max_block_threads:,}"
        )
    most = min(machine.ctas_per_sm, machine.threads_per_sm // threads)
    if not 1 <= ctas <= most:
        raise ScheduleError(
            f"an SM of the {machine.title} holds 1 to {most} CTAs of {threads} threads; ctas_per_sm = {ctas}"
        )


def require_grid_y(ctas: int, what: str, machine: Machine) -> None:
    """Raise ScheduleError where a grid has no room for so many CTAs along y; `what` says what they are."""
    most = machine.max_grid[1]
    if ctas > most:
        raise ScheduleError(f"{what} are grid.y; a grid on the {machine.title} has at most {most:,} there")


def require_choice(schedule: Any, name: str, legal: tuple[int, ...]) -> None:
    """Raise ScheduleError where a schedule field is not one of the legal values."""
    value = getattr(schedule, name)
    if value not in legal:
        raise ScheduleError(f"{name} must be one of {', '.join(map(str, legal))}; {name} = {value}")


def _plain(value: Any) -> int | str:
    return cast(int | str, value.value if isinstance(value, Enum) else value)
