"""`name=value` words on the command line to a frozen dataclass, by its fields."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from itertools import product
from math import prod
from typing import Any, TypeVar

from sim.errors import InputError

T = TypeVar("T")

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NUMBERS = {int: "an integer", float: "a number"}
_UNITS = {"k": 2**10, "m": 2**20}  # at the end of an integer
_SHOWN = 40  # characters of a bad value that an error repeats


def parse(what: type[T], words: Sequence[str], defaults: Mapping[str, Any] | None = None) -> T:
    """An instance of `what` from words such as "m=1" or "m=4k"; `defaults` fill fields that no word gives.

    Raises InputError for a word without "=", an unknown or repeated field, a value of the wrong type, a missing field.
    """
    known = {f.name: f for f in fields(what)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"{_short(word)} is not a name=value word; names: {', '.join(known)}")
        if name not in known:
            raise InputError(f"unknown name {_short(name)}; names: {', '.join(known)}")
        if name in given:
            raise InputError(f"{name} is given twice")
        given[name] = _value(name, value, known[name].type)
    values = {**(defaults or {}), **given}
    missing = [f.name for f in known.values() if f.default is MISSING and f.name not in values]
    if missing:
        raise InputError(f"{' '.join(f'{name}=' for name in missing)} must be given; names: {', '.join(known)}")
    return what(**values)


def spread(what: type, words: Sequence[str], most: int) -> list[list[str]]:
    """Words for `parse`, once for each combination of the values that they list (m=1,2,4) or span (m=1..64, doubling).

    A field of several integers takes its commas as they are. Raises InputError for a span that is none, and for more
    than `most` combinations.
    """
    types = {f.name: f.type for f in fields(what)}
    several = []
    for word in words:
        name, equals, text = word.partition("=")
        parts = [text] if types.get(name) == tuple[int, ...] else text.split(",")
        several.append([f"{name}{equals}{value}" for part in parts for value in _spanned(name, part)])
    if prod(map(len, several)) > most:
        raise InputError(f"these are {prod(map(len, several)):,} problems; one command takes {most}")
    return [list(combination) for combination in product(*several)]


def spell(values: Mapping[str, Any]) -> str:
    """The words that stand for these values."""
    return " ".join(f"{name}={_spelled(value)}" for name, value in values.items())


def _spelled(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_spelled, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _spanned(name: str, text: str) -> list[str]:
    """The values of a span, each twice the one before it; anything else is one value."""
    ends = text.split("..")
    if len(ends) != 2:
        return [text]
    first, last = (_value(name, end, int) for end in ends)
    if not 1 <= first <= last:
        raise InputError(f"{name} spans from at least 1 upwards; got {_short(text)}")
    return [str(first << doublings) for doublings in range((last // first).bit_length())]


def _value(name: str, text: str, type_: Any) -> Any:
    if type_ is bool:
        if text.lower() not in _BOOLEANS:
            raise InputError(f"{name} takes true or false; got {_short(text)}")
        return _BOOLEANS[text.lower()]
    if type_ == tuple[int, ...]:
        return tuple(_value(name, part, int) for part in text.split(",") if part)
    if type_ in _NUMBERS:
        try:
            return _integer(text) if type_ is int else type_(text)
        except ValueError:
            raise InputError(f"{name} takes {_NUMBERS[type_]}; got {_short(text)}") from None
    return text


def _integer(text: str) -> int:
    """An integer, perhaps in units of 1,024 (k) or of 1,048,576 (m); raises ValueError for anything else."""
    if len(text) > _SHOWN:
        raise ValueError
    unit = _UNITS.get(text[-1:].lower(), 1)
    return int(text if unit == 1 else text[:-1]) * unit


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
