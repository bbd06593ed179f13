"""Coefficients of the kernels' models of time, by architecture, model and clock: one line each in fits.jsonl.

A model's form is its kernel's Python, in figures of `Machine` and of a card's calibration; its numbers are here. A line
holds the clock that its times were taken by. Other clocks take the same numbers, but for `start_us`: from one clock to
another a launch starts later by as much as an empty one takes longer (`launch_us`).
"""

from functools import cache
from math import isfinite
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import structs

from lab.cards.figures import CLOCKS
from lab.cards.files import calibration
from sim.errors import InputError
from sim.machine import Machine

TABLE = Path(__file__).with_name("fits.jsonl")
FIRST_ARCH = "sm_90a"  # whose lines an architecture without its own takes: all were fitted there
LARGE_READ = 2.0**31  # bytes: at its plateau on every card


class Coefficients(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The numbers of one model: a subclass names them, the fields of `coefficients` in its lines."""


class Fit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line: the coefficients of a model on an architecture, or on one machine of it, fitted to times by a clock."""

    arch: str
    model: str
    clock: str
    source: str
    coefficients: dict[str, float]
    machine: str | None = None  # whose own line goes before its architecture's


class Reading(Coefficients, frozen=True):
    """How much of the data sheet's bandwidth a card reads at best."""

    read_share: float


Kind = TypeVar("Kind", bound=Coefficients)


def coefficients(kind: type[Kind], model: str, machine: Machine, clock: str) -> Kind:
    """The numbers of a model for a machine and a clock; raises InputError where its line does not name just those."""
    found: Kind
    found, fitted = _fit(kind, model, machine.arch, machine.name, clock)
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


def copy_rate(machine: Machine) -> float:
    """Bytes per second, read and written together, of a large copy: calibrated, else as a read's."""
    measured = calibration(machine).copy_bytes_per_s
    return measured.value if measured else read_rate(machine)


@cache  # sorting candidates asks thousands of times
def _fit(kind: type[Kind], model: str, arch: str, machine_name: str, clock: str) -> tuple[Kind, str]:
    """(coefficients, the clock they were fitted by) of the nearest line: the machine's, its architecture's, the first.

    Of each, one by the same clock goes first, then one by a graph.
    """
    lines = [fit for fit in load(TABLE) if fit.model == model]
    of_machine = [fit for fit in lines if fit.machine == machine_name]
    of_arch, of_first = ([f for f in lines if f.arch == a and f.machine is None] for a in (arch, FIRST_ARCH))
    for fits in filter(None, (of_machine, of_arch, of_first)):
        fit = min(fits, key=lambda fit: (fit.clock != clock, fit.clock != "graph"))
        try:
            return msgspec.convert(fit.coefficients, kind), fit.clock
        except msgspec.ValidationError as error:
            raise InputError(f"{TABLE.name}, {fit.arch} {model} {fit.clock}: {error}") from error
    raise InputError(f"{TABLE.name} has no line of the model {model} for {arch}")


def load(path: Path) -> tuple[Fit, ...]:
    """The lines of a file; raises InputError for one that is none, and for the same model, chip and clock twice."""
    found: dict[tuple[str, str, str, str | None], Fit] = {}
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
        key = fit.arch, fit.model, fit.clock, fit.machine
        if key in found:
            raise InputError(f"{where} repeats {' '.join(filter(None, key))}")
        found[key] = fit
    return tuple(found.values())
