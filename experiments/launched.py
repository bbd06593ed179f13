"""Launches that cards timed, as today's kernels describe them: what models of time are fitted to and judged by."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

from msgspec import structs

from experiments.lookup import is_peer, pace, question_of, stale
from lab import catalog
from lab.cards.fits import Error
from lab.choice import candidate_named
from lab.kernel import Kernel, recorded_schedule
from lab.problems import Problem
from lab.problems.transfer import Transfer
from lab.record import Archive, Record, is_chain
from lab.tuned import SEARCH
from sim.machine import Machine
from sim.machine import machine as machine_named
from sim.roofline import roofline


class Asked(NamedTuple):
    """What a model of time is asked for."""

    kernel: Kernel
    problem: Problem
    schedule: Any
    machine: Machine
    clock: str


class Launched:
    """One timed launch: its record, what a prediction of it needs, and both times in microseconds.

    Launches of a graph that begin before the one ahead has ended (`overlapping`) pay the chain's clock.
    """

    def __init__(self, record: Record, overlapping: bool | None = None) -> None:
        kernel = catalog.get(record.kernel or "")
        schedule = recorded_schedule(kernel, record.schedule or {})
        self.record = record
        clock = "chain" if overlapping and record.clock == "graph" else record.clock or ""
        self.asked = Asked(kernel, question_of(record), schedule, machine_named(record.machine), clock)  # type: ignore[arg-type]
        self.us = record.us or 0.0

    def predicted_us(self) -> float:
        """By the kernel's model as it is now, or as a trial has it."""
        kernel, *question = self.asked
        return kernel.predicted_us(*question)

    @cached_property
    def floor_us(self) -> float:
        """What the plain roofline says: the largest bill at data-sheet rates."""
        _, problem, _, machine, _ = self.asked
        return roofline(problem.flops, problem.bytes["total"], problem.unit, machine).floor_us

    @property
    def race(self) -> tuple[str, str, Problem]:
        """Machine, clock and problem: what launches share that one may choose among."""
        return self.asked.machine.name, self.asked.clock, self.asked.problem

    @property
    def shape(self) -> tuple[int, ...]:
        """That of its largest operand, such as a layer's weights: what launches share that are held out together."""
        operands = self.asked.problem.inputs.values()
        return max(operands, key=lambda operand: operand.nbytes).shape


def tried(record: Record) -> Iterator[Record]:
    """The times of a search's short race as records of their own; not of chains."""
    if record.tried is None or record.clock == "chain":
        return
    for name, us in record.tried.items():
        kernel, schedule = candidate_named(name)
        overlapping = False if record.metrics.get("plain") else None
        yield structs.replace(record, kernel=kernel, schedule=schedule, us=us, tried=None, overlapping=overlapping)


def _overlaps(record: Record) -> bool | None:
    """Whether its launches overlapped; where a search does not say so, as the kernel's launches ask for."""
    if record.overlapping is not None or record.metrics.get("stage") != SEARCH or stale(record):
        return record.overlapping
    kernel, _, schedule, machine, _ = (launch := Launched(record)).asked
    return any(one.dependent for one in kernel.launches(launch.asked.problem, schedule, machine))


class Off(NamedTuple):
    """How far a time that was foretold for a launch is from the measured one, as a share of this."""

    share: float
    launch: Launched


def summary(found: Sequence[Off]) -> Error:
    """The mean and the worst absolute error, to a hundredth of a percent, of at least one launch."""
    return Error(
        launches=len(found),
        shapes=len({off.launch.shape for off in found}),
        mean=round(fmean(abs(off.share) for off in found), 4),
        worst=round(max(abs(off.share) for off in found), 4),
    )


def launched(past: Archive) -> list[Launched]:
    """The newest sustained time on a card of each kernel, problem, schedule, machine and clock, searches' among them.

    What a search's last race timed stands, not its short one. Chains of layers are left out, and what is of another
    schedule or theory than the kernel has today. So are a time below the floor, a difference of steps and all of it
    noise, and what was pushed within one card: it is about a link.
    """
    newest: dict[str, tuple[Record, bool | None]] = {}
    for record in (one for each in past.where(on="gpu").records for one in (each, *tried(each))):
        if not record.us or not record.clock or not record.schedule or is_peer(record) or is_chain(record):
            continue
        if pace(record) == "sustained" and (record.check is None or record.check.passed):
            schedule = {name: str(value) for name, value in record.schedule.items()}
            overlapping = _overlaps(record)
            key = record.kernel, record.problem, schedule, record.machine, record.clock, overlapping
            newest[repr(key)] = record, overlapping
    latest: dict[Asked, Launched] = {}
    for one in (Launched(record, overlapping) for record, overlapping in newest.values() if not stale(record)):
        if one.asked not in latest or one.record.time >= latest[one.asked].record.time:
            latest[one.asked] = one  # older records lack fields that schedules have since, which are as usual
    found = latest.values()
    return [one for one in found if one.us >= one.floor_us and not isinstance(one.asked.problem, Transfer)]
