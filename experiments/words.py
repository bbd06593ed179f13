"""`name=value` words on the command line to a frozen dataclass, by its fields."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from sim.errors import InputError

T = TypeVar("T")

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NUMBERS = {int: "an integer", float: "a number"}
_SHOWN = 40  # characters of a bad value that an error repeats


def parse(what: type[T], words: Sequence[str], defaults: Mapping[str, Any] | None = None) -> T:
    """An instance of `what` from words such as "m=1"; `defaults` fill fields that no word gives.

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


def spell(values: Mapping[str, Any]) -> str:
    """The words that stand for these values."""
    return " ".join(f"{name}={_spelled(value)}" for name, value in values.items())


def _spelled(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_spelled, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(name: str, text: str, type_: Any) -> Any:
    if type_ is bool:
        if text.lower() not in _BOOLEANS:
            raise InputError(f"{name} takes true or false; got {_short(text)}")
        return _BOOLEANS[text.lower()]
    if type_ == tuple[int, ...]:
        return tuple(_value(name, part, int) for part in text.split(",") if part)
    if type_ in _NUMBERS:
        try:
            return type_(text)
        except ValueError:
            raise InputError(f"{name} takes {_NUMBERS[type_]}; got {_short(text)}") from None
    return text


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
