"""Record: one result with its whole provenance, one JSON line each; written whole or not at all."""

import importlib.metadata
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import quantiles
from typing import Any, Literal, NamedTuple, TypedDict

import msgspec

from sim.errors import EnvironmentFailure, InputError
from sim.folders import ROOT, unicode

SCHEMA = 1
COMMITTED = ROOT / "experiments" / "records"  # ships with the package
MAX_FILE = 64 * 2**20  # bytes; a larger file is not one of ours
MAX_LINE = 4 * 2**20
_PACKAGES = ("numpy", "numba", "cupy-cuda13x", "cuda-python", "nvidia-cuda-nvrtc", "kernel-lab")

Value = int | float | str | bool | None


class Checked(msgspec.Struct, frozen=True):
    """Whether the result was right; `error` is max |difference| / bound, passes at 1, and is null where infinite."""

    passed: bool
    error: float | None


class Spread(NamedTuple):
    """How far samples lie apart: their quartiles, in microseconds, and how many there are."""

    low_us: float
    high_us: float
    samples: int


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One measured or simulated result. Times are microseconds, power is watts, byte counts are in the Counts.

    `run` is one id for all rows measured interleaved in one go. `on` is the chip that ran it, "sim" or "gpu", and
    `machine` the description its theory and prediction refer to. `us` is the median of `samples_us`. A peer's row has
    the kernel "peer:<name>". `overlapping` says whether the kernel's launches were dependent ones, which may start
    before what is enqueued ahead of them has ended; null is unknown, as of a peer. `code` is a digest of the kernel's
    device code (`lab.compile.code_digest`). `tried` is a search's: the time of
    each candidate, unchecked. `metrics` holds what only this experiment defines, each name ending in its unit.
    """

    schema: int = SCHEMA
    run: str
    time: str  # UTC, ISO 8601
    commit: str  # "unknown" outside a checkout
    dirty: bool
    command: str
    versions: dict[str, str]
    on: Literal["sim", "gpu"]
    machine: str
    card: str | None = None
    driver: str | None = None
    clocks: dict[str, float] | None = None  # MHz
    throttle: list[str] | None = None
    power_w: float | None = None
    experiment: str | None = None
    kernel: str | None = None
    problem: dict[str, Value | list[Value]] | None = None
    schedule: dict[str, int | str] | None = None
    code: str | None = None
    clock: Literal["cold", "graph", "chain"] | None = None
    overlapping: bool | None = None
    us: float | None = None
    samples_us: list[float] = []
    predicted_us: float | None = None
    check: Checked | None = None
    theory: dict[str, int | None] | None = None
    simulated: dict[str, int | None] | None = None
    counters: dict[str, float] | None = None
    tried: dict[str, float] | None = None
    metrics: dict[str, Value] = {}

    @property
    def spread(self) -> Spread | None:
        """The spread of the samples whose median is `us`; None where there are not several."""
        if len(self.samples_us) < 2:
            return None
        low, _, high = quantiles(self.samples_us, method="inclusive")
        return Spread(low, high, len(self.samples_us))

    @property
    def source(self) -> str:
        """Card and commit, as a table cites a measured figure."""
        return f"{self.card or self.machine}, {self.commit[:8]}{'+' if self.dirty else ''}"


class Provenance(TypedDict):
    """The fields of a Record that say where it came from."""

    run: str
    time: str
    commit: str
    dirty: bool
    command: str
    versions: dict[str, str]


def provenance() -> Provenance:
    """Provenance of a run that starts now; call it once and give all rows of the run the same."""
    at, dirty = commit()
    program = Path(sys.argv[0]).name.replace("__main__.py", "lab") or "python"
    return Provenance(
        run=uuid.uuid4().hex[:12],
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=at,
        dirty=dirty,
        command=unicode(shlex.join([program, *sys.argv[1:]])),
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, without importing them."""
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def folder() -> Path:
    """Where new records go: experiments/records inside a checkout, ./lab-records elsewhere."""
    return COMMITTED if in_checkout() else Path.cwd() / "lab-records"


def append(record: Record, path: Path) -> None:
    """Add one whole line to a records file and flush it to disk; raises EnvironmentFailure where that fails."""
    line = msgspec.json.encode(record) + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _ends_mid_line(path):
            line = b"\n" + line  # an interrupted writer's half line stays a line of its own
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            _write_or_undo(file, line)
        finally:
            os.close(file)
    except OSError as error:
        with suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()
        raise EnvironmentFailure(f"the record cannot be written to {path}: {error.strerror}") from error


def _write_or_undo(file: int, line: bytes) -> None:
    """Write all of a line and flush it, or none of it: a full disk takes half a line without complaint."""
    before = os.fstat(file).st_size
    try:
        written = os.write(file, line)
        if written < len(line):
            os.write(file, line[written:])  # says why no more fits
        os.fsync(file)
    except OSError:
        os.ftruncate(file, before)
        raise


@dataclass(frozen=True)
class Archive:
    """Records in the order of their time, and one sentence for each line that was skipped."""

    records: tuple[Record, ...]
    complaints: tuple[str, ...] = ()

    def where(self, **fields: Any) -> "Archive":
        """The records whose named fields have these values."""
        named = [self._by(name).get(fields[name], []) for name in ("kernel", "experiment") if name in fields]
        among = min(named, key=len, default=self.records)
        found = (r for r in among if all(getattr(r, name) == v for name, v in fields.items()))
        return Archive(tuple(found), self.complaints)

    def _by(self, name: str) -> dict[str | None, list[Record]]:
        """The records by a field of words."""
        if name not in self._groups:
            groups = self._groups[name] = {}
            for record in self.records:
                groups.setdefault(getattr(record, name), []).append(record)
        return self._groups[name]

    @cached_property
    def _groups(self) -> dict[str, dict[str | None, list[Record]]]:
        return {}

    def newest(self, **fields: Any) -> Record | None:
        """The newest record whose named fields have these values."""
        return next(reversed(self.where(**fields).records), None)

    def newest_run(self, **fields: Any) -> tuple[Record, ...]:
        """All records with these values of the newest run that has any."""
        newest = self.newest(**fields)
        return self.where(**{**fields, "run": newest.run}).records if newest else ()

    def newest_with(self, field: str, **fields: Any) -> Record | None:
        """The newest record with these values that has the named field at all."""
        having = [r for r in self.where(**fields).records if getattr(r, field)]
        return having[-1] if having else None

    def timed(self, **fields: Any) -> tuple[Record, ...]:
        """The records of the newest run on a real card that timed what has these values; chains of layers left out."""
        found = [r for r in self.where(on="gpu", **fields).records if r.us and not is_chain(r)]
        return tuple(r for r in found if r.run == found[-1].run)


def is_chain(record: Record) -> bool:
    """Whether a record's time is that of several layers, the output of each the input of the next."""
    return "layers" in record.metrics and record.us is not None


def archive(mentioning: bytes = b"") -> Archive:
    """Every record at hand, those that came with the lab and those written here, whose lines mention that."""
    places = {COMMITTED.resolve(), folder().resolve()}
    return read((file for place in sorted(places) for file in sorted(place.glob("*.jsonl"))), mentioning)


def read(paths: Iterable[Path], mentioning: bytes = b"") -> Archive:
    """Read the lines of records files that mention that; one that is not whole is skipped and named in `complaints`.

    Raises InputError for a file that cannot be read or is too large, for an unknown schema and for a line that is JSON
    but no Record.
    """
    records: list[Record] = []
    complaints: list[str] = []
    for path in paths:
        for number, line in _lines(path):
            if mentioning not in line:
                continue
            try:
                schema = msgspec.json.decode(line, type=_Schema).schema
            except msgspec.ValidationError as error:
                raise InputError(f"{path.name} line {number} is not a record: {error}") from error
            except (msgspec.DecodeError, UnicodeDecodeError):
                complaints.append(f"{path.name} line {number} is not a whole record and was skipped")
                continue
            if schema != SCHEMA:
                raise InputError(
                    f"{path.name} line {number} has schema {schema}; this version of the lab reads {SCHEMA}"
                )
            try:
                records.append(_completed(msgspec.json.decode(line, type=Record)))
            except msgspec.ValidationError as error:
                raise InputError(f"{path.name} line {number} is not a record: {error}") from error
    return Archive(tuple(sorted(records, key=lambda r: r.time)), tuple(complaints))


def _completed(record: Record) -> Record:
    """The record with what older ones say in their metrics alone: a chain's clock, and whether launches overlapped."""
    if is_chain(record) and record.clock == "graph":
        record = msgspec.structs.replace(record, clock="chain")
    if record.overlapping is None and record.schedule is not None:
        if record.metrics.get("plain"):
            return msgspec.structs.replace(record, overlapping=False)
        if "launches" in record.metrics:
            return msgspec.structs.replace(record, overlapping=record.metrics["launches"] == "dependent")
    return record


class _Schema(msgspec.Struct):
    schema: int


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines that are not blank, each with its number."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE + 1)  # a device has no end
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(text) > MAX_FILE:
        raise InputError(f"{path} is too large; a records file has at most {MAX_FILE:,} bytes")
    lines = text.split(b"\n")
    if any(len(line) > MAX_LINE for line in lines):
        raise InputError(f"{path} has a line of more than {MAX_LINE:,} bytes; it is no records file")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _ends_mid_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def in_checkout() -> bool:
    """Whether the lab runs from a checkout rather than an installed package."""
    return (ROOT / "pyproject.toml").exists()


def commit() -> tuple[str, bool]:
    """(commit, dirty): $LAB_COMMIT ("-dirty" at its end says so), else git's, else "unknown"."""
    given = os.environ.get("LAB_COMMIT")
    if given:
        return given.removesuffix("-dirty"), given.endswith("-dirty")
    at = _git("rev-parse", "HEAD") if in_checkout() else None
    if at is None:
        return "unknown", False
    # Records and the tables made of them do not change what a run does.
    return at, bool(_git("status", "--porcelain", "--", ".", ":!experiments/records", ":!README.md", ":!docs"))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
