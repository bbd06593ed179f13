"""The two chips as backends of experiments: give a kernel a problem, get records."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Literal, Protocol

import msgspec
from msgspec import structs

from experiments.running import (
    layers_on_device,
    on_device,
    serving_on_device,
    speech_on_device,
    step_search,
    steps_on_device,
)
from experiments.running.fleets import NEEDS_TWO, predicted_fleet
from experiments.running.jobs import AnyJob, Job, Search, ServeJob, SpeakJob, StepJob, Work, batch, problem_of
from experiments.running.serving import predicted
from experiments.running.simulation import BUDGET, require_room, simulate
from lab import catalog, tuned
from lab.choice import schedule_words
from lab.gpu import device, worker
from lab.inference.step import step_us
from lab.kernel import RANKING_CLOCK, Kernel, parse_schedule, schedule_fields
from lab.problems import Problem, Question
from lab.problems.model import PREFILL
from lab.record import Checked, Provenance, Record
from sim.errors import InputError
from sim.launch import overlap
from sim.machine import Machine
from sim.machine import machine as machine_named

COUNTED_TOGETHER = 6  # launches under one ncu, whose start costs seconds; what fails takes no more down
DEADLINE_S = 300.0  # one kernel and its peers on one problem, compiling included

Pairing = tuple[str, Problem]  # a kernel's name and what it shall solve


class Backend(Protocol):
    """Where an experiment runs."""

    @property
    def on(self) -> Literal["sim", "gpu"]:
        """Its name on the command line."""

    @property
    def machine(self) -> Machine:
        """What describes it."""

    def kernels(self, pairings: Sequence[Pairing], budget_s: float = BUDGET) -> Iterator[Record]:
        """Records of kernels with their best guess of a schedule; on a GPU also of peers on the same problems.

        `budget_s` is what one simulated check may cost.
        """

    def timed(self, jobs: Sequence[Job], seconds: float) -> Iterator[Record]:
        """Records of jobs beside their peers, while the seconds last; on the simulated chip counts and predictions."""

    def searched(self, searches: Sequence[Search], seconds: float) -> Iterator[Record]:
        """Records of searches that leave the tuned table alone; on the simulated chip predictions of what is picked."""

    def tuned(self, searches: Sequence[Search], seconds: float) -> Iterator[Record]:
        """Records of searches, whose winners enter the tuned table; nothing on the simulated chip."""

    def chained(self, jobs: Sequence[Job], seconds: float) -> Iterator[Record]:
        """Records of chains of layers, each job's problem as often as its fact `layers` says, beside their peers."""

    def layered(self, jobs: Sequence[Job], seconds: float) -> Iterator[Record]:
        """Records of attention behind its append, in as many layers as the fact `layers` says."""

    def stepped(self, jobs: Sequence[StepJob], seconds: float) -> Iterator[Record]:
        """Records of whole steps of models, beside PyTorch's; on the simulated chip what they are predicted to take."""

    def tuned_in_steps(self, jobs: Sequence[StepJob], seconds: float) -> Iterator[Record]:
        """Records of matrices' schedules, raced in the steps that have them; winners enter the tuned table."""

    def spoken(self, jobs: Sequence[SpeakJob], seconds: float) -> Iterator[Record]:
        """Records of how fast language models speak; nothing on the simulated chip."""

    def served(self, jobs: Sequence[ServeJob], seconds: float) -> Iterator[Record]:
        """Records of serving loops, what is predicted of them beside each; that alone on the simulated chip."""

    def worked(self, function: Callable[[Any], Iterator[Record]], work: Work, seconds: float) -> Iterator[Record]:
        """The records that a function of experiments/running makes of its work on this chip."""

    def counted(self, jobs: Sequence[Job]) -> Iterator[Record]:
        """Hardware counters of each job's first schedule; nothing on the simulated chip."""

    def closed_form(
        self, metrics: Mapping[str, Any], problem: Question | None = None, machine: Machine | None = None
    ) -> Record:
        """A record of figures that follow from formulas alone, for this chip's machine or another."""

    def ceilings(self) -> Iterator[Record]:
        """What the chip itself does at best; one record without figures where nothing can be measured."""


@dataclass(frozen=True)
class _Common:
    machine: Machine
    experiment: str
    origin: Provenance

    def closed_form(
        self, metrics: Mapping[str, Any], problem: Question | None = None, machine: Machine | None = None
    ) -> Record:
        return Record(
            **self.origin,
            on="sim",
            machine=(machine or self.machine).name,
            experiment=self.experiment,
            problem=problem.as_dict() if problem else None,
            metrics=dict(metrics),
        )


@dataclass(frozen=True)
class SimulatedBackend(_Common):
    """The simulated chip: counts, checks, predictions."""

    on: ClassVar[Literal["sim"]] = "sim"

    def kernels(self, pairings: Sequence[Pairing], budget_s: float = BUDGET) -> Iterator[Record]:
        for name, problem in pairings:
            kernel = catalog.get(name)
            schedule = kernel.best_guess(problem, self.machine)
            found = simulate(kernel, problem, schedule, self.machine, budget_s)
            launches = kernel.launches(problem, schedule, self.machine)
            yield Record(
                **self.origin,
                on="sim",
                machine=self.machine.name,
                experiment=self.experiment,
                kernel=name,
                problem=problem.as_dict(),
                schedule=schedule_fields(schedule),
                overlapping=overlap(launches),
                predicted_us=kernel.predicted_us(problem, schedule, self.machine, RANKING_CLOCK),
                check=Checked(found.passed, finite(found.check.error)),
                theory=found.theory.as_dict(),
                simulated=found.simulated.as_dict(),
                metrics={"checked": found.note or "whole", "relative_error": finite(found.check.relative_error)},
            )

    def timed(self, jobs: Sequence[Job], seconds: float) -> Iterator[Record]:  # noqa: ARG002 (counting is quick)
        return self._counted_out(jobs, RANKING_CLOCK)

    def chained(self, jobs: Sequence[Job], seconds: float) -> Iterator[Record]:  # noqa: ARG002
        return self._counted_out(jobs, "chain")

    layered = chained

    def _counted_out(self, jobs: Sequence[Job], clock: str) -> Iterator[Record]:
        """Counts of every schedule of the jobs, and what a launch is predicted to take by a clock."""
        for job in jobs:
            kernel, problem = job.parts()
            for schedule in (parse_schedule(kernel, words, problem, self.machine) for words in job.schedules):
                launches = kernel.launches(problem, schedule, self.machine)
                yield Record(
                    **self.origin,
                    on="sim",
                    machine=self.machine.name,
                    experiment=self.experiment,
                    kernel=job.kernel,
                    problem=job.problem,
                    schedule=schedule_fields(schedule),
                    overlapping=overlap(launches) and not job.plain,
                    predicted_us=kernel.predicted_us(problem, schedule, self.machine, clock),
                    theory=kernel.module.theory(problem, schedule, self.machine).as_dict(),
                    simulated=kernel.count(problem, schedule, self.machine).as_dict(),
                    metrics=dict(job.facts),
                )

    def stepped(self, jobs: Sequence[StepJob], seconds: float) -> Iterator[Record]:  # noqa: ARG002
        for job in jobs:
            model = problem_of(job.problem)
            new = model.context if model.phase == PREFILL else 1
            yield Record(
                **self.origin,
                on="sim",
                machine=self.machine.name,
                experiment=self.experiment,
                problem=job.problem,
                overlapping=True,
                predicted_us=step_us(model, [(new, model.context)] * model.batch, self.machine),
                metrics={**job.facts, "launches": "overlapping"},
            )

    def served(self, jobs: Sequence[ServeJob], seconds: float) -> Iterator[Record]:  # noqa: ARG002
        for job in jobs:
            metrics = {**job.facts, **(predicted_fleet if job.gpus else predicted)(job, self.machine)}
            yield self.closed_form(metrics, problem_of(job.problem))

    def worked(self, function: Callable[[Any], Iterator[Record]], work: Work, seconds: float) -> Iterator[Record]:  # noqa: ARG002
        for record in function(msgspec.to_builtins(structs.replace(work, on="sim", machine=self.machine.name))):
            yield structs.replace(record, **self.origin)

    def searched(self, searches: Sequence[Search], seconds: float) -> Iterator[Record]:  # noqa: ARG002
        for search in [search for search in searches if search.picked]:
            name, words = search.picked
            kernel, problem = catalog.get(name), problem_of(search.problem)
            schedule = parse_schedule(kernel, words, problem, self.machine)
            yield Record(
                **self.origin,
                on="sim",
                machine=self.machine.name,
                experiment=self.experiment,
                kernel=name,
                problem=search.problem,
                schedule=schedule_fields(schedule),
                predicted_us=kernel.predicted_us(problem, schedule, self.machine, search.clock),
                metrics=dict(search.facts),
            )

    def tuned(self, searches: Sequence[Search], seconds: float) -> Iterator[Record]:  # noqa: ARG002
        yield from ()

    def tuned_in_steps(self, jobs: Sequence[StepJob], seconds: float) -> Iterator[Record]:  # noqa: ARG002
        yield from ()

    def spoken(self, jobs: Sequence[SpeakJob], seconds: float) -> Iterator[Record]:  # noqa: ARG002
        yield from ()

    def counted(self, jobs: Sequence[Job]) -> Iterator[Record]:  # noqa: ARG002
        yield from ()

    def ceilings(self) -> Iterator[Record]:
        yield self.closed_form({})


@dataclass(frozen=True)
class GpuBackend(_Common):
    """This machine's GPU, reached through a worker process with a deadline."""

    on: ClassVar[Literal["gpu"]] = "gpu"

    def kernels(self, pairings: Sequence[Pairing], budget_s: float = BUDGET) -> Iterator[Record]:  # noqa: ARG002
        # budget_s bounds simulated arithmetic; this chip's is free
        jobs, simulated = [], {}
        for name, problem in pairings:
            require_room(problem, self.machine)
            jobs.append(Job(kernel=name, problem=problem.as_dict(), experiment=self.experiment))
            kernel = catalog.get(name)
            counted = kernel.count(problem, kernel.best_guess(problem, self.machine), self.machine)
            simulated[f"{name} {problem.as_dict()}"] = counted.as_dict()
        for record in self.timed(jobs, DEADLINE_S * len(jobs)):
            counts = simulated.get(f"{record.kernel} {record.problem}")
            yield structs.replace(record, simulated=counts) if counts else record

    def timed(self, jobs: Sequence[Job], seconds: float) -> Iterator[Record]:
        return in_worker(on_device.bench, jobs, self.origin, seconds)

    def searched(self, searches: Sequence[Search], seconds: float) -> Iterator[Record]:
        return in_worker(on_device.search, searches, self.origin, seconds)

    def chained(self, jobs: Sequence[Job], seconds: float) -> Iterator[Record]:
        return in_worker(on_device.chains, jobs, self.origin, seconds)

    def layered(self, jobs: Sequence[Job], seconds: float) -> Iterator[Record]:
        return in_worker(layers_on_device.layers, jobs, self.origin, seconds)

    def stepped(self, jobs: Sequence[StepJob], seconds: float) -> Iterator[Record]:
        return in_worker(steps_on_device.steps, jobs, self.origin, seconds)

    def tuned_in_steps(self, jobs: Sequence[StepJob], seconds: float) -> Iterator[Record]:
        yield from _settled(in_worker(step_search.search, jobs, self.origin, seconds))

    def spoken(self, jobs: Sequence[SpeakJob], seconds: float) -> Iterator[Record]:
        return in_worker(speech_on_device.speak, jobs, self.origin, seconds)

    def served(self, jobs: Sequence[ServeJob], seconds: float) -> Iterator[Record]:
        if any(job.gpus for job in jobs):
            raise InputError(NEEDS_TWO)
        return in_worker(serving_on_device.serve_jobs, jobs, self.origin, seconds)

    def worked(self, function: Callable[[Any], Iterator[Record]], work: Work, seconds: float) -> Iterator[Record]:
        for found in worker.stream(function, msgspec.to_builtins(structs.replace(work, on="gpu")), seconds):
            yield _placed(msgspec.convert(found, Record), self.origin)

    def tuned(self, searches: Sequence[Search], seconds: float) -> Iterator[Record]:
        return tune(searches, self.origin, seconds)

    def counted(self, jobs: Sequence[Job]) -> Iterator[Record]:
        subjects = []
        for job in jobs:
            kernel, problem = job.parts()
            subjects.append((kernel, problem, parse_schedule(kernel, job.schedules[0], problem, self.machine)))
        for first in range(0, len(subjects), COUNTED_TOGETHER):
            yield from read_counters(subjects[first : first + COUNTED_TOGETHER], self.machine, self.origin)

    def ceilings(self) -> Iterator[Record]:
        for found in worker.stream(on_device.ceilings, {"experiment": self.experiment}, DEADLINE_S):
            yield _placed(msgspec.convert(found, Record), self.origin)


def in_worker(
    function: Callable[[Any], Iterator[Record]],
    jobs: Sequence[AnyJob],
    origin: Provenance,
    seconds: float,
    deadline_s: float | None = None,
) -> Iterator[Record]:
    """The records that a function of experiments/running/on_device.py makes of jobs, in one worker process.

    Jobs that have not begun after `seconds` are skipped. Raises EnvironmentFailure where all has not ended by the
    deadline, by default a job's own time later.
    """
    deadline = seconds + DEADLINE_S if deadline_s is None else deadline_s
    for found in worker.stream(function, batch(jobs, seconds), deadline):
        yield _placed(msgspec.convert(found, Record), origin)


def tune(
    searches: Sequence[Search], origin: Provenance, seconds: float, deadline_s: float | None = None
) -> Iterator[Record]:
    """The records of searches as `in_worker` yields them; each search's winner enters the tuned table when it ends.

    What the table has at present races along.
    """
    machine = real_machine()
    contested = [_with_incumbents(search, machine) for search in searches]
    yield from _settled(in_worker(on_device.search, contested, origin, seconds, deadline_s))


def _settled(records: Iterable[Record]) -> Iterator[Record]:
    """The same records; each problem's winner enters the tuned table when its records end."""
    found: list[Record] = []
    for record in records:
        if found and found[-1].problem != record.problem:
            _settle(found)
            found.clear()
        found.append(record)
        yield record
    if found:
        _settle(found)


def _with_incumbents(search: Search, machine: Machine) -> Search:
    held = tuned.incumbents(problem_of(search.problem), machine, chain=search.clock == tuned.CHAIN)
    return structs.replace(search, incumbents=tuple((name, schedule_words(fields)) for name, fields in held))


def _settle(records: Sequence[Record]) -> None:
    entry = tuned.winner(records, problem_of(dict(records[0].problem or {})))
    if entry:
        tuned.put([entry])


def read_counters(
    subjects: Sequence[tuple[Kernel, Any, Any]], machine: Machine, origin: Provenance
) -> Iterator[Record]:
    """Records of the hardware counters of each (kernel, problem, schedule), one launch of each.

    Raises EnvironmentFailure where they cannot be read.
    """
    from lab.gpu import counters  # loads a GPU library: only where there is a GPU

    for (kernel, problem, schedule), reading in zip(subjects, counters.read_all(subjects, machine), strict=True):
        yield Record(
            **origin,
            on="gpu",
            machine=machine.name,
            card=device.card().name,
            driver=device.card().driver,
            experiment="counters",
            kernel=kernel.name,
            problem=problem.as_dict(),
            schedule=schedule_fields(schedule),
            predicted_us=kernel.predicted_us(problem, schedule, machine, RANKING_CLOCK),
            theory=kernel.module.theory(problem, schedule, machine).as_dict(),
            simulated=kernel.count(problem, schedule, machine).as_dict(),
            counters={name: float(value) for name, value in reading.counts.as_dict().items() if value is not None},
            metrics=dict(reading.metrics),
        )


def finite(number: float) -> float | None:
    """The number, or None where JSON has no word for it."""
    return number if isfinite(number) else None


def _placed(record: Record, origin: Provenance) -> Record:
    """The record of a worker with the command that its user typed."""
    return structs.replace(record, command=origin["command"])


def backend_on(on: str, machine_name: str, experiment: str, origin: Provenance) -> Backend:
    """The backend that "sim" or "gpu" names; raises InputError for other words, NoDeviceError where there is no GPU."""
    if on == "sim":
        return SimulatedBackend(machine_named(machine_name), experiment, origin)
    if on != "gpu":
        raise InputError(f"on takes sim or gpu; got {on!r}")
    return GpuBackend(real_machine(), experiment, origin)


def real_machine() -> Machine:
    """The machine that this computer's GPU is; raises NoDeviceError where there is none."""
    device.require_device()
    return device.machine()
