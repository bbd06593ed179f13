"""Files of calibrations: where they lie, read with care, written whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import msgspec

from lab.cards.figures import Calibration
from sim.errors import EnvironmentFailure, InputError
from sim.folders import config_path, write_whole
from sim.machine import Machine

COMMITTED = Path(__file__).parent  # ships with the package
MAX_FILE = 2**20  # bytes; a larger file is none of ours
_settled: ContextVar[dict[str, Calibration] | None] = ContextVar("settled", default=None)
_PLACES = ("LAB_CONFIG_DIR", "XDG_CONFIG_HOME", "HOME")  # what the user's folder depends on


def user_path(machine_name: str) -> Path:
    """The user's own file of a machine."""
    return config_path() / "cards" / f"{machine_name}.json"


def committed_path(machine_name: str) -> Path:
    """The file of a machine that comes with the lab."""
    return COMMITTED / f"{machine_name}.json"


def calibration(machine: Machine) -> Calibration:
    """What was measured on such a card: by the user, else by the lab's authors, else nothing.

    Raises InputError for a file that is no calibration of that machine.
    """
    found = _settled.get()
    if found is None:
        return _calibration(machine.name, *map(os.environ.get, _PLACES))
    if machine.name not in found:
        found[machine.name] = _calibration(machine.name, *map(os.environ.get, _PLACES))
    return found[machine.name]


@contextmanager
def settled() -> Iterator[None]:
    """Look up where files lie once while it lasts: a choice among schedules asks a thousand times."""
    token = _settled.set({})
    try:
        yield
    finally:
        _settled.reset(token)


@cache
def _calibration(machine_name: str, *_places: str | None) -> Calibration:
    for path in (user_path(machine_name), committed_path(machine_name)):
        if path.exists():
            return _read(path, machine_name)
    return Calibration(machine=machine_name)


def _read(path: Path, machine_name: str) -> Calibration:
    try:
        size = path.stat().st_size
        if size > MAX_FILE:
            raise InputError(f"{path} has {size:,} bytes; a calibration has at most {MAX_FILE:,}")
        found = msgspec.json.decode(path.read_bytes(), type=Calibration)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no calibration: {error}") from error
    found.require_sound(str(path))
    if found.machine != machine_name:
        raise InputError(f"{path} calibrates {found.machine!r}, not {machine_name!r}")
    return found


def write(calibration: Calibration, path: Path) -> None:
    """Write a calibration, whole or not at all; raises EnvironmentFailure where that fails."""
    calibration.require_sound(str(path))
    text = msgspec.json.format(msgspec.json.encode(calibration), indent=1) + b"\n"
    try:
        write_whole(path, text)
    except OSError as error:
        raise EnvironmentFailure(f"the calibration cannot be written to {path}: {error.strerror}") from error
    forget()


def forget() -> None:
    """Read files anew from now on."""
    _calibration.cache_clear()
