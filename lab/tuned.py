"""What searches on real cards found: the best kernel and schedule of each problem class, in two tables.

The committed one is tuned.jsonl beside this file; before it goes the user's own, which `lab tune` writes.

A class is a machine and what problems share that one search serves (`Problem.tuned_class`), such as a linear layer with
m rounded up to a power of two: tuned at m = 512, an entry serves m = 257 to 512. It has another entry for
a chain, whose launches overlap: what is fastest alone may not be so beside the next layer. One JSON object a line,
sorted.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from lab.problems import Problem
from lab.record import Record
from sim.errors import EnvironmentFailure, InputError
from sim.folders import config_path, write_whole
from sim.machine import Machine

TABLE = Path(__file__).with_name("tuned.jsonl")
SEARCH, FINAL = "search", "final"  # stages of a search, as its records name them
CHAIN = "chain"  # the clock of dependent launches

Value = bool | int | str


class TunedClass(msgspec.Struct, frozen=True, omit_defaults=True):
    """The winner of one class, its median microseconds, and the run, commit and card of the records that chose it.

    `chain` where it was timed among dependent launches, by the clock of that name; `timed_at` are the extents of what
    was timed where they are not the class's.
    """

    machine: str
    problem_class: dict[str, Value] = msgspec.field(name="class")
    kernel: str
    schedule: dict[str, Value]
    us: float
    run: str
    commit: str
    card: str
    chain: bool = False
    timed_at: dict[str, int] = {}

    @property
    def key(self) -> str:
        """What no two entries share, and what they are sorted by: machine, formats and options, extents, chain."""
        extents = {name: value for name, value in self.problem_class.items() if isinstance(value, int)}
        words = [f"{name}={value}" for name, value in self.problem_class.items() if name not in extents]
        last = ["chain"] if self.chain else []
        return " ".join([self.machine, *words, *(f"{name}={value:010}" for name, value in extents.items()), *last])


def user_table() -> Path:
    """The user's own table."""
    return config_path() / TABLE.name


def lookup(problem: Problem, machine: Machine, chain: bool = False) -> tuple[str, dict[str, Value]] | None:
    """(kernel name, schedule fields) of the problem's class on a machine, or None; raises InputError as `load` does.

    Where a chain has no entry of its own, or only a chain has one, the other serves.
    """
    entry = _entry(problem.tuned_class(), machine, chain) or _entry(problem.tuned_class(), machine, not chain)
    return (entry.kernel, entry.schedule) if entry else None


def is_tuned(problem: Problem, machine: Machine, chain: bool = False) -> bool:
    """Whether the problem's class has an entry of just this kind."""
    return _entry(problem.tuned_class(), machine, chain) is not None


def is_tuned_at(problem: Problem, machine: Machine, chain: bool = False) -> bool:
    """Whether what `lookup` gives was timed at the problem's own extents, as the user's are taken to be."""
    if is_users(problem, machine):
        return True
    one = problem.tuned_class()
    entry = _entry(one, machine, chain) or _entry(one, machine, not chain)
    extents = {name: value for name, value in one.items() if type(value) is int} | (entry.timed_at if entry else {})
    return all(getattr(problem, name, value) == value for name, value in extents.items())


def incumbents(problem: Problem, machine: Machine, chain: bool = False) -> list[tuple[str, dict[str, Value]]]:
    """As `lookup`, what a search is to race along, each once.

    Both entries of the class, wider classes' that took less time, and those of other matrices for as many rows. A race
    it must be: a kernel may take longer for fewer rows, where its boxes reach beyond them.
    """
    classes = [problem.tuned_class(), *problem.wider_classes()]
    own, *wider = [_entry(one, machine, chain) for one in classes]
    found = [own, _entry(classes[0], machine, not chain), *(e for e in wider if e and own and e.us < own.us)]
    alike = _but_matrix(classes[0])
    found += [e for e in _known().values() if e.machine == machine.name and _but_matrix(e.problem_class) == alike]
    unique = {msgspec.json.encode((e.kernel, e.schedule)): (e.kernel, e.schedule) for e in found if e}
    return list(unique.values())


def winner(records: Sequence[Record], problem: Problem) -> TunedClass | None:
    """The fastest kernel among the records of a search's last race; None where none has a time."""
    final = [r for r in records if r.metrics.get("stage") == FINAL and r.schedule is not None and r.us is not None]
    if not final:
        return None
    best = min(final, key=lambda r: r.us or 0.0)
    return TunedClass(
        machine=best.machine,
        problem_class=problem.tuned_class(),
        kernel=best.kernel or "",
        schedule=best.schedule or {},
        us=round(best.us or 0.0, 3),
        run=best.run,
        commit=best.commit,
        card=best.card or "",
        chain=best.clock == CHAIN,
        timed_at=_beside(problem),
    )


def _beside(problem: Problem) -> dict[str, int]:
    """The problem's extents that are not its class's."""
    extents = {name: value for name, value in problem.tuned_class().items() if type(value) is int}
    return {name: own for name, value in extents.items() if (own := getattr(problem, name, value)) != value}


def is_users(problem: Problem, machine: Machine) -> bool:
    """Whether the user's own table has the problem's class."""
    alone = [entry for entry in _entries(user_table()).values() if entry.machine == machine.name and not entry.chain]
    return problem.tuned_class() in [entry.problem_class for entry in alone]


def put(entries: Iterable[TunedClass], table: Path | None = None) -> None:
    """Add entries to a table, by default the committed one, each in place of an older one of its class.

    The file is replaced as a whole. Raises EnvironmentFailure where it cannot be written.
    """
    path = table or TABLE
    merged = {entry.key: entry for entry in [*load(path), *entries]}
    lines = b"".join(msgspec.json.encode(merged[key]) + b"\n" for key in sorted(merged))
    try:
        write_whole(path, lines)
    except OSError as error:
        raise EnvironmentFailure(f"the tuned table cannot be written to {path}: {error.strerror}") from error
    _entries.cache_clear()


def load(path: Path) -> list[TunedClass]:
    """The entries of a table, if there is one; raises InputError for a line that is none, and for a class twice."""
    entries: dict[str, TunedClass] = {}
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            entry = msgspec.json.decode(line, type=TunedClass)
        except msgspec.DecodeError as error:
            raise InputError(f"{path} line {number} is not an entry: {error}") from error
        if entry.key in entries:
            raise InputError(f"{path} line {number} repeats the class {entry.key}")
        entries[entry.key] = entry
    return list(entries.values())


def _known() -> dict[str, TunedClass]:
    """Both tables, the user's entry where both have a class."""
    return {**_entries(TABLE), **_entries(user_table())}


@lru_cache(maxsize=4)
def _entries(path: Path) -> dict[str, TunedClass]:
    return {entry.key: entry for entry in load(path)}


def _but_matrix(problem_class: dict[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in problem_class.items() if name not in ("n", "k")}


def _entry(problem_class: dict[str, Any], machine: Machine, chain: bool) -> TunedClass | None:
    blank: dict[str, Any] = {"kernel": "", "schedule": {}, "us": 0.0, "run": "", "commit": "", "card": ""}
    return _known().get(TunedClass(machine=machine.name, problem_class=problem_class, **blank, chain=chain).key)
