"""The two chips as an experiment sees them: give a kernel a problem, get records."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Literal, Protocol

import msgspec
from msgspec import structs

from experiments import _device
from experiments._simulation import BUDGET, count, require_room, simulate
from lab import catalog
from lab.gpu import device, worker
from lab.kernel import schedule_fields
from lab.problems import Problem, Question
from lab.record import Checked, Provenance, Record
from sim.errors import InputError
from sim.machine import Machine
from sim.machine import machine as machine_named

DEADLINE_S = 300.0  # one kernel and its peers on one problem, compiling included

Case = tuple[str, Problem]  # a kernel's name and what it shall solve


class Chip(Protocol):
    """Where an experiment runs."""

    @property
    def on(self) -> Literal["sim", "gpu"]:
        """Its name on the command line."""

    @property
    def machine(self) -> Machine:
        """What describes it."""

    def kernels(self, cases: Sequence[Case], budget_s: float = BUDGET) -> Iterator[Record]:
        """Records of kernels with their best guess of a schedule; on a GPU also of peers on the same problems.

        `budget_s` is what one simulated check may cost.
        """

    def closed_form(
        self, metrics: Mapping[str, Any], problem: Question | None = None, machine: Machine | None = None
    ) -> Record:
        """A record of figures that follow from formulas alone, for this chip's machine or another."""

    def ceilings(self) -> Iterator[Record]:
        """What the chip itself does at best; one record without figures where nothing can be measured."""


@dataclass(frozen=True)
class _Bench:
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
class SimulatedChip(_Bench):
    """The simulated chip: counts, checks, predictions."""

    on: ClassVar[Literal["sim"]] = "sim"

    def kernels(self, cases: Sequence[Case], budget_s: float = BUDGET) -> Iterator[Record]:
        for name, problem in cases:
            kernel = catalog.get(name)
            schedule = kernel.best_guess(problem, self.machine)
            found = simulate(kernel, problem, schedule, self.machine, budget_s)
            error = found.check.error if isfinite(found.check.error) else None
            yield Record(
                **self.origin,
                on="sim",
                machine=self.machine.name,
                experiment=self.experiment,
                kernel=name,
                problem=problem.as_dict(),
                schedule=schedule_fields(schedule),
                predicted_us=found.predicted_us,
                check=Checked(found.passed, error),
                theory=found.theory.as_dict(),
                simulated=found.simulated.as_dict(),
                metrics={"checked": found.note or "whole"},
            )

    def ceilings(self) -> Iterator[Record]:
        yield self.closed_form({})


@dataclass(frozen=True)
class RealChip(_Bench):
    """This machine's GPU, reached through a worker process with a deadline."""

    on: ClassVar[Literal["gpu"]] = "gpu"

    def kernels(self, cases: Sequence[Case], budget_s: float = BUDGET) -> Iterator[Record]:  # noqa: ARG002
        # budget_s bounds simulated arithmetic; this chip's is free
        jobs, simulated = [], {}
        for name, problem in cases:
            require_room(problem, self.machine)
            jobs.append(_device.Job(name, problem.as_dict(), ("",), experiment=self.experiment))
            kernel = catalog.get(name)
            counted, _ = count(kernel, problem, kernel.best_guess(problem, self.machine), self.machine)
            simulated[f"{name} {problem.as_dict()}"] = counted.as_dict()
        for record in race(jobs, self.origin):
            counts = simulated.get(f"{record.kernel} {record.problem}")
            yield structs.replace(record, simulated=counts) if counts else record

    def ceilings(self) -> Iterator[Record]:
        for found in worker.stream(_device.ceilings, {"experiment": self.experiment}, DEADLINE_S):
            yield _placed(msgspec.convert(found, Record), self.origin)


def race(jobs: Sequence[_device.Job], origin: Provenance, deadline_s: float = DEADLINE_S) -> Iterator[Record]:
    """Check and time the kernels and peers of jobs in one worker process.

    Raises EnvironmentFailure past `deadline_s` seconds for each job.
    """
    for found in worker.stream(_device.bench, msgspec.to_builtins(jobs), deadline_s * len(jobs)):
        yield _placed(msgspec.convert(found, Record), origin)


def _placed(record: Record, origin: Provenance) -> Record:
    """The record of a worker with the command that its user typed."""
    return structs.replace(record, command=origin["command"])


def chip_on(on: str, machine_name: str, experiment: str, origin: Provenance) -> Chip:
    """The chip that "sim" or "gpu" names; raises InputError for other words, NoDeviceError where there is no GPU."""
    if on == "sim":
        return SimulatedChip(machine_named(machine_name), experiment, origin)
    if on != "gpu":
        raise InputError(f"on takes sim or gpu; got {on!r}")
    return RealChip(real_machine(), experiment, origin)


def real_machine() -> Machine:
    """The machine that this computer's GPU is; raises NoDeviceError where there is none."""
    device.require_device()
    return device.machine()
