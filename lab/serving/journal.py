"""Every decision of a loop, one JSON line each, and the same decisions made again from what it was told."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import msgspec

from lab.serving.request import Request
from lab.serving.scheduler import Costs, Policy, Scheduler
from lab.serving.step import Decision, StepPlan, StepResult
from sim.errors import InputError


class Opened(msgspec.Struct, frozen=True, tag="policy", array_like=True):
    """The first line: the policy's fields."""

    policy: dict[str, Any]


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

    def __init__(self, file: IO[bytes], policy: Policy) -> None:
        self._file = file
        self.write(Opened(asdict(policy)))

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


def replay(lines: Iterable[Line], costs: Costs | None = None) -> int:
    """Make a journal's decisions anew from its requests and results; returns how many are the same, byte for byte.

    Raises InputError and shows the first decision that is another.
    """
    scheduler, steps = None, 0
    for line in lines:
        if isinstance(line, Opened):
            scheduler = Scheduler(Policy(**line.policy), costs)
        elif scheduler is None:
            raise InputError("a journal begins with its policy")
        elif isinstance(line, Added):
            scheduler.add(line.request)
        elif isinstance(line, Aborted):
            scheduler.abort(line.id)
        elif isinstance(line, StepResult):
            scheduler.commit(line)
        else:
            plan = scheduler.schedule()
            now = _ENCODER.encode(plan.decision() if plan else None)
            if now != _ENCODER.encode(line):
                raise InputError(f"step {line.step} was {_ENCODER.encode(line).decode()} and is now {now.decode()}")
            steps += 1
    return steps


def first_difference(one: Iterable[Line], other: Iterable[Line]) -> tuple[Line | None, Line | None] | None:
    """The first decisions of two journals that are not the same; None where all are."""
    kept = ([line for line in lines if isinstance(line, Decision)] for lines in (one, other))
    mine, others = kept
    for i in range(max(len(mine), len(others))):
        pair = (mine[i] if i < len(mine) else None, others[i] if i < len(others) else None)
        if pair[0] != pair[1]:
            return pair
    return None
