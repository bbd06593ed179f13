"""How true predictions of time are: every timed launch of the records beside its prediction and its floor."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from experiments.launched import Launched, Off, summary
from experiments.lookup import changed, question_of
from experiments.words import spell
from lab.cards.fits import Error
from lab.choice import outgrown
from lab.inference import step_us
from lab.kernel import Predicts
from lab.problems import Model, Problem
from lab.problems.model import PREFILL
from lab.record import Archive, Record
from sim.machine import machine as machine_named

_ERRORS = ("error: mean", "worst", "near: mean", "worst", "before: mean", "worst", "roofline: mean", "worst")
FAMILY_HEADINGS = ("family", "card", "clock", "launches", "older / unknown code", "at the power cap", *_ERRORS)
CELL_HEADINGS = ("kernel", "problem", "schedule", "card", "clock", "us", "error", "before", "roofline")
CHOICE_HEADINGS = ("card", "clock", "problems", "within 5%", "within 10%", "within 15%", "worst")
STEP_HEADINGS = ("whole step of a model", "card", "measured at", "us", "error", "before")
LEAST_TRIED = 6
NEAR = 1.5  # times the fastest launch of a problem: what took no longer may be worth choosing
LEAST_US = 10.0  # shorter launches are the launch's own time more than the kernel's


class Scored(NamedTuple):
    """A launch and how far off its time, as shares of it, are a prediction of today, one of before, and a floor.

    Today's is of models that may have been fitted to this very launch. The one of before stands in the record: the
    commit that timed the launch made it, not knowing the time; None where there is none. The floor is the roofline's.
    `near` says that no launch of the problem took less than 1 / NEAR of the time.
    """

    launch: Launched
    today: float
    before: float | None
    roofline: float
    near: bool

    def as_dict(self) -> dict[str, Any]:
        """As `lab validate --json` has it."""
        launch = self.launch
        names = ("kernel", "problem", "schedule", "machine", "us", "run")
        told = {name: getattr(launch.record, name) for name in names}
        errors = {"today": self.today, "before": self.before, "roofline": self.roofline}
        doubts = {"older_code": self.older_code, "throttle": launch.record.throttle}
        return {**told, "clock": launch.asked.clock, **errors, **doubts}

    @property
    def older_code(self) -> bool | None:
        """Whether the kernel's device code is another today; None where the record does not tell its code."""
        return None if self.launch.record.code is None else changed(self.launch.record)


class Choice(NamedTuple):
    """A problem that a search timed on one card by one clock, and how much longer what predictions pick would take.

    `regret` is a share of the fastest time; `tried` how many launches there were to pick from.
    """

    machine: str
    clock: str
    problem: Problem
    tried: int
    regret: float


class Family(NamedTuple):
    """The errors of a family's launches on one card by one clock; `near` and `before` of those that are or have one.

    So many of the launches are of older device code, or of code that their record does not tell; in so many runs the
    card reached a cap (`throttled`).
    """

    family: str
    machine: str
    clock: str
    older_code: int
    unknown_code: int
    throttled: int
    today: Error
    near: Error | None
    before: Error | None
    roofline: Error


class Step(NamedTuple):
    """A whole step of a model whose launches overlapped, and how far off its time a prediction by the chain's clock is.

    `before` is the record's own, as of a launch.
    """

    record: Record
    today: float
    before: float | None

    def as_dict(self) -> dict[str, Any]:
        """As `lab validate --json` has it."""
        told = {name: getattr(self.record, name) for name in ("problem", "machine", "us", "run", "commit", "throttle")}
        return {**told, "today": self.today, "before": self.before}


def steps(past: Archive) -> list[Step]:
    """The newest time of each model's step on each card, today's worst prediction first."""
    newest = {
        f"{record.machine} {record.problem}": record
        for record in past.where(on="gpu", overlapping=True).records
        if record.us and "stage" not in record.metrics and (record.problem or {}).get("kind") == Model.kind
    }
    found = []
    for record in newest.values():
        model, us = question_of(record), record.us or 0.0
        assert isinstance(model, Model)
        new = model.context if model.phase == PREFILL else 1
        today = step_us(model, [(new, model.context)] * model.batch, machine_named(record.machine)) / us - 1
        found.append(Step(record, today, record.predicted_us / us - 1 if record.predicted_us else None))
    return sorted(found, key=lambda one: -abs(one.today))


def step_rows(found: Sequence[Step]) -> list[list[str]]:
    """A row of cells for each step, under STEP_HEADINGS."""
    rows = []
    for one in found:
        asked = one.record.problem or {}
        told = {name: asked[name] for name in ("layers", "d", "weights", "phase", "batch", "context")}
        errors = [f"{share:+.1%}" if share is not None else "-" for share in (one.today, one.before)]
        at = ", ".join([one.record.commit[:8], *(one.record.throttle or ())])
        rows.append([spell(told), one.record.machine, at, f"{one.record.us:,.0f}", *errors])
    return rows


def choices(launches: Sequence[Launched]) -> list[Choice]:
    """Every problem of which LEAST_TRIED launches or more were timed, by kernels that `lab.choice` considers."""
    groups: dict[tuple[str, str, Problem], list[Launched]] = defaultdict(list)
    for launch in launches:
        groups[launch.race].append(launch)
    found = []
    for key, those in groups.items():
        gone = outgrown([launch.asked.kernel for launch in those])
        left = [launch for launch in those if launch.asked.kernel.name not in gone]
        if len(left) >= LEAST_TRIED:
            picked = min(left, key=Launched.predicted_us)
            found.append(Choice(*key, len(left), picked.us / min(launch.us for launch in left) - 1))
    return found


def choice_rows(found: Sequence[Choice]) -> list[list[str]]:
    """A row of cells for each card and clock, under CHOICE_HEADINGS."""
    regrets: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in found:
        regrets[one.machine, one.clock].append(one.regret)
    rows = []
    for (machine, clock), those in sorted(regrets.items()):
        within = [f"{fmean(regret <= most for regret in those):.0%}" for most in (0.05, 0.1, 0.15)]
        rows.append([machine, clock, f"{len(those)}", *within, f"{max(those):.1%}"])
    return rows


def scored(launches: Sequence[Launched]) -> list[Scored]:
    """Every launch that took longer than LEAST_US, of a kernel that has a model, today's worst prediction first."""
    found = []
    fastest: dict[Any, float] = {}
    for launch in launches:
        fastest[launch.race] = min(launch.us, fastest.get(launch.race, launch.us))
    for launch in launches:
        if launch.us > LEAST_US and isinstance(launch.asked.kernel.module, Predicts):
            before = launch.record.predicted_us
            today, floor = launch.predicted_us() / launch.us - 1, launch.floor_us / launch.us - 1
            near = launch.us <= NEAR * fastest[launch.race]
            found.append(Scored(launch, today, before / launch.us - 1 if before else None, floor, near))
    return sorted(found, key=lambda one: -abs(one.today))


def families(found: Sequence[Scored]) -> list[Family]:
    """The launches by family, card and clock."""
    groups: dict[tuple[str, str, str], list[Scored]] = defaultdict(list)
    for one in found:
        asked = one.launch.asked
        groups[asked.kernel.family, asked.machine.name, asked.clock].append(one)
    return [
        Family(
            *key,
            older_code=sum(one.older_code is True for one in those),
            unknown_code=sum(one.older_code is None for one in those),
            throttled=sum(bool(one.launch.record.throttle) for one in those),
            today=summary([Off(one.today, one.launch) for one in those]),
            near=_summary([Off(one.today, one.launch) for one in those if one.near]),
            before=_summary([Off(one.before, one.launch) for one in those if one.before is not None]),
            roofline=summary([Off(one.roofline, one.launch) for one in those]),
        )
        for key, those in sorted(groups.items())
    ]


def _summary(found: Sequence[Off]) -> Error | None:
    return summary(found) if found else None


def family_rows(found: Sequence[Family]) -> list[list[str]]:
    """A row of cells for each, under FAMILY_HEADINGS."""
    rows = []
    for each in found:
        errors = [each.today, each.near, each.before, each.roofline]
        cells = [cell for error in errors for cell in ((f"{error.mean:.1%}", f"{error.worst:.1%}") if error else "--")]
        codes = f"{each.older_code:,} / {each.unknown_code:,}"
        counts = [f"{each.today.launches:,}", codes, f"{each.throttled:,}"]
        rows.append([each.family, each.machine, each.clock, *counts, *cells])
    return rows


def cell_rows(found: Sequence[Scored]) -> list[list[str]]:
    """A row of cells for each launch, under CELL_HEADINGS."""
    rows = []
    for one in found:
        record, kernel = one.launch.record, one.launch.asked.kernel
        known = {name: value for name, value in (record.problem or {}).items() if name != "kind"}
        errors = [f"{share:+.1%}" if share is not None else "-" for share in (one.today, one.before, one.roofline)]
        what = [kernel.name, spell(known), spell(record.schedule or {})]
        rows.append([*what, record.machine, one.launch.asked.clock, f"{one.launch.us:.1f}", *errors])
    return rows
