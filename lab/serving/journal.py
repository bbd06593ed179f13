"""Every decision of a loop, one JSON line each, and the same decisions made again from what it was told."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

import msgspec

from lab.problems import Model
from lab.serving.policy import Costs, Policy
from lab.serving.request import Request
from lab.serving.scheduler import Scheduler
from lab.serving.step import Decision, StepPlan, StepResult
from lab.serving.times import StepTimes
from sim.errors import InputError
from sim.machine import machine


class Opened(msgspec.Struct, frozen=True, tag="policy", array_like=True):
    """The first line: the fields of the policy and of the model that is served, and the name of its machine."""

    policy: dict[str, Any]
    model: dict[str, Any] | None = None
    machine: str = ""

    def costs(self, policy: Policy) -> Costs | None:
        """What its scheduler was told of times; raises InputError for a machine that is not known here."""
        return StepTimes(Model(**self.model), machine(self.machine), policy.buckets) if self.model else None


class Added(msgspec.Struct, frozen=True, tag="add", array_like=True):
    """A request was queued."""

    request: Request


class Aborted(msgspec.Struct, frozen=True, tag="abort", array_like=True):
    """A request was given up."""

    id: int


Line = Opened | Added | Aborted | Decision | StepResult
_ENCODER, _DECODER = msgspec.json.Encoder(), msgspec.json.Decoder(Line)


class Journal:
    """Writes what a scheduler is told and what it decides to a binary file, a line each, in order."""

    def __init__(self, file: IO[bytes], policy: Policy, times: StepTimes | None = None) -> None:
        self._file = file
        about = (asdict(times.model), times.machine.name) if times else ()
        self.write(Opened(asdict(policy), *about))

    def write(self, line: Line) -> None:
        self._file.write(_ENCODER.encode(line) + b"\n")

    def plan(self, plan: StepPlan) -> None:
        self.write(plan.decision())


def decoded(line: bytes) -> Line:
    """A line as it was written."""
    found: Line = _DECODER.decode(line)
    return found


def read(path: Path) -> Iterator[Line]:
    """The lines of a journal; raises InputError for a line that is none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield decoded(line)
            except msgspec.DecodeError as error:
                raise InputError(f"{path.name} line {number} is no line of a journal: {error}") from error


def replay(lines: Iterable[Line], costs: Costs | None = None) -> Iterator[Decision | None]:
    """The decisions that a scheduler makes today by a journal's requests and results, None where it decides nothing.

    Its costs are those of the journal's model and machine, unless others are given. Raises InputError for a journal
    that does not begin with its policy, and for results that come in another order than steps.
    """
    scheduler = None
    for line in lines:
        if isinstance(line, Opened):
            policy = Policy(**line.policy)
            scheduler = Scheduler(policy, costs or line.costs(policy))
        elif scheduler is None:
            raise InputError("a journal begins with its policy")
        elif isinstance(line, Added):
            scheduler.add(line.request)
        elif isinstance(line, Aborted):
            scheduler.abort(line.id)
        elif isinstance(line, StepResult):
            if not scheduler.in_flight or scheduler.in_flight[0].step != line.step:
                raise InputError(f"the journal has a result of step {line.step} where none is awaited")
            scheduler.commit(line)
        else:
            plan = scheduler.schedule()
            yield plan.decision() if plan else None


def decisions(lines: Iterable[Line]) -> Iterator[Decision]:
    """Those of a journal."""
    return (line for line in lines if isinstance(line, Decision))


def first_difference(
    one: Iterable[Decision | None], other: Iterable[Decision | None]
) -> tuple[int, Decision | None, Decision | None] | None:
    """How many decisions are the same, and the first two that are not; None where all are."""
    for same, (mine, others) in enumerate(zip_longest(one, other)):
        if mine != others:
            return same, mine, others
    return None
