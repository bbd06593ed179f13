"""The documents of `lab check`, one function a chip."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from experiments.asked import kernel_named, problem_for, questions
from experiments.running import on_device
from experiments.running.jobs import Job
from experiments.running.simulation import require_room, simulate
from experiments.words import parse
from lab import catalog
from lab.cards import CLOCKS
from lab.choice import choose
from lab.compile import compile_launch
from lab.gpu import worker
from lab.kernel import RANKING_CLOCK, Kernel, parse_schedule, schedule_fields
from lab.problems import QUESTIONS, Problem
from sim.counts import Counts
from sim.errors import EnvironmentFailure
from sim.machine import Machine
from sim.machine import machine as machine_named


@dataclass(frozen=True)
class Subject:
    """What is to be checked: a kernel, a problem that it takes, a legal schedule, the machine."""

    kernel: Kernel
    problem: Problem
    schedule: Any
    machine: Machine


def subject(kernel_name: str, words: Sequence[str], schedule: str, machine_name: str) -> Subject:
    """The subject that the words describe; raises InputError or ScheduleError for anything illegal in it."""
    return subject_on(machine_named(machine_name), kernel_name, words, schedule)


def subject_on(machine: Machine, kernel_name: str, words: Sequence[str], schedule: str) -> Subject:
    """Likewise, on a machine that is known already."""
    kernel = catalog.get(kernel_name)
    problem = problem_for(kernel, words)
    kernel.require_arch(problem, machine)
    require_room(problem, machine)
    return Subject(kernel, problem, parse_schedule(kernel, schedule, problem, machine), machine)


def benched_on(machine: Machine, name: str, words: Sequence[str], schedule: str) -> Subject:
    """Likewise; a kind of problem names the kernel and the schedule that are chosen for it."""
    if name not in QUESTIONS:
        return subject_on(machine, name, words, schedule)
    problem: Any = parse(QUESTIONS[name], words)
    require_room(problem, machine)
    kernel, chosen, _ = choose(problem, machine)
    return Subject(kernel, problem, parse_schedule(kernel, schedule, problem, machine) if schedule else chosen, machine)


def tuned_on(machine: Machine, name: str, words: Sequence[str]) -> list[Any]:
    """The problems of a kernel or of a kind that the words describe, lists and ranges among them several.

    Raises InputError for what this machine cannot run or hold.
    """
    kernel, found = kernel_named(name), questions(name, words)
    for problem in found:
        require_room(problem, machine)
        if kernel:
            kernel.require_arch(problem, machine)
    return found


def compiled(subject: Subject) -> dict[str, Any]:
    """Compile the device code of every launch, by NVRTC alone: the architecture, and what ptxas says of each entry.

    Raises KernelError, with the compiler's own lines, where it does not compile.
    """
    machine = subject.machine
    launches = subject.kernel.launches(subject.problem, subject.schedule, machine)
    found = {launch.entry: compile_launch(launch, machine).resources[launch.entry] for launch in launches}
    return {"arch": machine.arch, "entries": {entry: asdict(used) for entry, used in found.items()}}


def on_sim(subject: Subject) -> dict[str, Any]:
    """Run the tile simulation."""
    found = simulate(subject.kernel, subject.problem, subject.schedule, subject.machine)
    return {
        **_head(subject, "sim"),
        **asdict(found.check),
        "passed": found.passed,
        "checked": found.part.as_dict(),
        "note": found.note,
        "theory": found.theory.as_dict(),
        "simulated": found.simulated.as_dict(),
        "ptx": None,
        "hazards": [],
        "disagreements": _pairs(found.disagreements),
    }


def on_gpu(subject: Subject, words: str, deadline_s: float) -> dict[str, Any]:
    """Run it on this machine's GPU, in a worker process; `words` are the schedule's as they were given."""
    job = Job(kernel=subject.kernel.name, problem=subject.problem.as_dict(), schedules=(words,))
    found = worker.run(on_device.check, msgspec.to_builtins(job), deadline_s)
    return {
        **_head(subject, "gpu"),
        **found,
        "note": "",
        "theory": subject.kernel.module.theory(subject.problem, subject.schedule, subject.machine).as_dict(),
        "simulated": subject.kernel.count(subject.problem, subject.schedule, subject.machine).as_dict(),
        "ptx": None,
        "hazards": [],
        "disagreements": {},
    }


def on_ptx(subject: Subject, seeds: int) -> dict[str, Any]:
    """Execute the compiled PTX in the emulator, in `seeds` interleavings: all must be right and free of hazards."""
    check_ptx = _emulator("lab.check_ptx").check_ptx
    found = check_ptx(subject.kernel, subject.problem, subject.schedule, subject.machine, seeds)
    differing = {name: pair for v in found.verifications for name, pair in v.disagreements.items()}
    wrong = [{"seed": seed, **asdict(v.check)} for seed, v in enumerate(found.verifications) if not v.check.passed]
    return {
        **found.as_dict(),
        "seeds": seeds,
        "ptx_passed": found.passed,
        "ptx_error": found.error,
        "ptx_wrong": wrong,
        "ptx_disagreements": _pairs(differing),
    }


def write_trace(subject: Subject, path: Path) -> None:
    """Write one interleaving as a Chrome trace, which Perfetto opens."""
    trace = _emulator("lab.check_ptx").trace_ptx(subject.kernel, subject.problem, subject.schedule, subject.machine)
    try:
        path.write_bytes(msgspec.json.encode(trace))
    except OSError as error:
        raise EnvironmentFailure(f"the trace cannot be written to {path}: {error.strerror}") from error


def mutants(subject: Subject, seeds: int) -> dict[str, Any]:
    """Break the compiled PTX in every systematic way: each break must be caught, or be shown to be harmless."""
    judge = _emulator("lab.mutants").judge_mutants
    judged = [asdict(one) for one in judge(subject.kernel, subject.problem, subject.schedule, subject.machine, seeds)]
    return {"mutants": judged, "mutants_missed": sum(one["verdict"] == "missed" for one in judged)}


def _emulator(module: str) -> Any:
    try:
        return import_module(module)  # the emulator takes a while to load, and most checks do without
    except ImportError as error:
        raise EnvironmentFailure(f"the PTX emulator cannot be loaded: {error}") from error


def _head(subject: Subject, on: str) -> dict[str, Any]:
    paid = {clock: subject.kernel.bills(subject.problem, subject.schedule, subject.machine, clock) for clock in CLOCKS}
    predicted = {clock: bills.as_dict() for clock, bills in paid.items()}
    return {
        "kernel": subject.kernel.name,
        "problem": subject.problem.as_dict(),
        "schedule": schedule_fields(subject.schedule),
        "machine": subject.machine.name,
        "on": on,
        "predicted_us": predicted[RANKING_CLOCK]["us"],
        "predicted": predicted,
    }


def _pairs(found: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
    return {name: {"theory": a, "counted": b} for name, (a, b) in found.items()}


def counts_rows(columns: Mapping[str, Mapping[str, int | None] | None]) -> list[tuple[str, list[int | None]]]:
    """(field, its value in each column) of every field that some column counts."""
    rows = [
        (name, [column.get(name) if column else None for column in columns.values()]) for name in Counts().as_dict()
    ]
    return [(name, values) for name, values in rows if any(v is not None for v in values)]
