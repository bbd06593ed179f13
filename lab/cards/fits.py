"""Coefficients of the kernels' models of time, by architecture, model and clock: one line each in fits.jsonl.

A model's form is its kernel's Python, in figures of `Machine` and of a card's calibration; its numbers are here. A line
holds the clock that its times were taken by. Other clocks take the same numbers, but for `start_us`: from one clock to
another a launch starts later by as much as an empty one takes longer (`launch_us`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from math import isfinite
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import structs

from lab.cards.figures import CLOCKS
from lab.cards.files import calibration
from sim.errors import EnvironmentFailure, InputError
from sim.folders import write_whole
from sim.machine import Machine

TABLE = Path(__file__).with_name("fits.jsonl")
FIRST_ARCH = "sm_90a"  # whose lines an architecture without its own takes: all were fitted there
LARGE_READ = 2.0**31  # bytes: at its plateau on every card


class Coefficients(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The numbers of one model: a subclass names them, the fields of `coefficients` in its lines."""


class Error(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a kernel's predictions lay from measured times, as shares of these, on launches and shapes so many."""

    launches: int
    shapes: int
    mean: float
    worst: float


class Fit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A line: the coefficients of a model on an architecture, or on one machine of it, fitted to times by a clock.

    `errors` are those of each kernel that was timed: on shapes held out of the fit, or on all where the numbers are of
    another source, as `source` then says; empty where nobody judged them.
    """

    arch: str
    model: str
    clock: str
    source: str
    coefficients: dict[str, float]
    machine: str | None = None  # whose own line goes before its architecture's
    errors: dict[str, Error] = {}

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What no two lines share, and what they are sorted by."""
        return self.arch, self.model, self.clock, self.machine or ""


class Trial(NamedTuple):
    """Lines to predict by before the table's, the numbers found in them, and the models that were asked for."""

    lines: tuple[Fit, ...]
    found: dict[tuple[str, str, str], tuple["Coefficients", str] | None]
    asked: set[str]


class Reading(Coefficients, frozen=True):
    """How much of the data sheet's bandwidth a card reads at best."""

    read_share: float


Kind = TypeVar("Kind", bound=Coefficients)
_trial: ContextVar[Trial | None] = ContextVar("trial", default=None)


@contextmanager
def trial(*lines: Fit) -> Iterator[set[str]]:
    """Predict by these lines, then by those of a trial around it, then by the table's, while it lasts.

    Gives the set to which each model is added that is asked for.
    """
    outer = _trial.get()
    running = Trial((*lines, *(outer.lines if outer else ())), {}, set())
    token = _trial.set(running)
    try:
        yield running.asked
    finally:
        _trial.reset(token)


def of_machine(name: str) -> tuple[Fit, ...]:
    """The lines fitted on one machine, as general ones: a trial of them predicts on every card as that machine's would.

    Raises InputError where there is none.
    """
    found = tuple(structs.replace(fit, machine=None) for fit in load(TABLE) if fit.machine == name)
    if not found:
        raise InputError(f"{TABLE.name} has no line of the machine {name}")
    return found


def coefficients(kind: type[Kind], model: str, machine: Machine, clock: str) -> Kind:
    """The numbers of a model for a machine and a clock; raises InputError where its line does not name just those."""
    found: Kind
    found, fitted = _tried(kind, model, machine, clock) or _fit(kind, model, machine.arch, machine.name, clock)
    if fitted == clock or "start_us" not in kind.__struct_fields__:
        return found
    longer = launch_us(machine, clock) - launch_us(machine, fitted)
    return structs.replace(found, start_us=getattr(found, "start_us") + longer)  # noqa: B009 (a subclass's)


def launch_us(machine: Machine, clock: str) -> float:
    """Microseconds of an empty launch by a clock: calibrated, a chain's in a graph where it is not; else assumed."""
    card = calibration(machine)
    measured = card.launch(clock)
    if measured is None and clock == "chain":
        measured = card.launch("graph")
    return machine.launch_us if measured is None else measured


def read_rate(machine: Machine) -> float:
    """Bytes per second that a large read gets from HBM: calibrated, else the usual share of the data sheet's."""
    measured = calibration(machine).read_rate(LARGE_READ, "graph")
    return measured or coefficients(Reading, "read", machine, "graph").read_share * machine.hbm_bandwidth


def sm_clock_hz(machine: Machine) -> float:
    """The SMs' clock while the cap on power does not bind: calibrated, as it was beside reads, else the boost clock."""
    measured = calibration(machine).sm_clock_mhz["read"]
    return measured.value * 1e6 if measured else machine.clock_hz


def copy_rate(machine: Machine) -> float:
    """Bytes per second, read and written together, of a large copy: calibrated, else as a read's."""
    measured = calibration(machine).copy_bytes_per_s
    return measured.value if measured else read_rate(machine)


def nearest(model: str, machine: Machine, clock: str) -> Fit:
    """The line that a model's numbers are taken from; raises InputError where there is none."""
    return _nearest(model, machine.arch, machine.name, clock)


def _nearest(model: str, arch: str, machine_name: str, clock: str) -> Fit:
    found = _picked([fit for fit in load(TABLE) if fit.model == model], arch, machine_name, clock)
    if found is None:
        raise InputError(f"{TABLE.name} has no line of the model {model} for {arch}")
    return found


def _picked(lines: Sequence[Fit], arch: str, machine_name: str, clock: str) -> Fit | None:
    """The machine's, its architecture's or the first's: of each, one by the same clock, then a graph's, a cold one."""
    of_machine = [fit for fit in lines if fit.machine == machine_name]
    of_arch, of_first = ([f for f in lines if f.arch == a and f.machine is None] for a in (arch, FIRST_ARCH))
    for fits in filter(None, (of_machine, of_arch, of_first)):
        return min(fits, key=lambda fit: (clock, "graph", "cold", "chain").index(fit.clock))
    return None


@cache  # sorting candidates asks thousands of times
def _fit(kind: type[Kind], model: str, arch: str, machine_name: str, clock: str) -> tuple[Kind, str]:
    """(coefficients, the clock they were fitted by) of the nearest line."""
    return _converted(kind, _nearest(model, arch, machine_name, clock))


def _tried(kind: type[Kind], model: str, machine: Machine, clock: str) -> tuple[Kind, str] | None:
    """The same of a trial's lines, where there is a trial that has one of the model."""
    running = _trial.get()
    if running is None:
        return None
    running.asked.add(model)
    key = model, machine.name, clock
    if key not in running.found:
        fit = _picked([fit for fit in running.lines if fit.model == model], machine.arch, machine.name, clock)
        running.found[key] = _converted(kind, fit) if fit else None
    found: tuple[Kind, str] | None = running.found[key]  # type: ignore[assignment]  # a model has one kind
    return found


def _converted(kind: type[Kind], fit: Fit) -> tuple[Kind, str]:
    try:
        return msgspec.convert(fit.coefficients, kind), fit.clock
    except msgspec.ValidationError as error:
        raise InputError(f"{TABLE.name}, {fit.arch} {fit.model} {fit.clock}: {error}") from error


def error(kernel: str, machine: Machine, clock: str) -> tuple[Error, Fit] | None:
    """How far a kernel's predictions are off, and the line that says so; None where no fit's launches tell."""
    models = {fit.model for fit in load(TABLE) if kernel in fit.errors}
    lines = [nearest(model, machine, clock) for model in sorted(models)]
    return next(((line.errors[kernel], line) for line in lines if kernel in line.errors), None)


def put(lines: Sequence[Fit], machine_name: str = "") -> None:
    """Put lines into the table, in place of all that it has of their architectures and models, or of one machine.

    Raises EnvironmentFailure where it cannot be written.
    """
    fitted = {(fit.arch, fit.model) for fit in lines}
    stays = [fit for fit in load(TABLE) if machine_name and fit.machine != machine_name]
    left = [fit for fit in load(TABLE) if fit in stays or (fit.arch, fit.model) not in fitted]
    ordered = sorted([*left, *lines], key=lambda fit: fit.key)
    text = b"".join(msgspec.json.format(msgspec.json.encode(fit), indent=0) + b"\n" for fit in ordered)
    try:
        write_whole(TABLE, text)
    except OSError as error:
        raise EnvironmentFailure(f"the fits cannot be written to {TABLE}: {error.strerror}") from error
    _fit.cache_clear()


def load(path: Path) -> tuple[Fit, ...]:
    """The lines of a file; raises InputError for one that is none, and for the same model, chip and clock twice."""
    found: dict[tuple[str, str, str, str], Fit] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        where = f"{path.name} line {number}"
        try:
            fit = msgspec.json.decode(line, type=Fit)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{where} is no fit: {error}") from error
        if fit.clock not in CLOCKS:
            raise InputError(f"{where}: unknown clock {fit.clock!r}; clocks: {', '.join(CLOCKS)}")
        if wrong := [name for name, value in fit.coefficients.items() if not isfinite(value)]:
            raise InputError(f"{where}: {wrong[0]} must be finite")
        if fit.key in found:
            raise InputError(f"{where} repeats {' '.join(filter(None, fit.key))}")
        found[fit.key] = fit
    return tuple(found.values())
