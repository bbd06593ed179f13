"""Finding records: what was measured of exactly the thing that another record is about, and whether that still stands.

A figure is looked up by machine, kernel, problem, schedule, clock and overlapping or plain launches, so that nothing
that differs in one of them ever stands in one row. Where older records do not say how launches followed each other,
they are found where nothing better is, and their rows say so; they are never compared with those that do.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from experiments.chart import Mark, Series
from experiments.running.jobs import problem_of
from experiments.words import spell
from lab import catalog
from lab.compile import code_digest
from lab.kernel import recorded_schedule
from lab.problems import Linear, Question
from lab.record import Archive, Record, is_chain
from lab.tuned import SEARCH
from sim.errors import LabError
from sim.machine import machine

# What only moves as many bytes: floors, and no rivals.
READ, COPY, GATHER = MOVERS = "peer:read", "peer:copy", "peer:gather"
CLOCKS = {"cold": "cold L2", "graph": "in a graph"}
DISPUTED = 1.5  # times the fastest time of the same peer on the same problem: a peer's figure beyond it is in doubt
STALE, CHANGED, UNKNOWN, IN_DOUBT = "stale", "kernel changed since", "launches unknown", "disputed"
MARKS = {
    STALE: "the kernel's schedule or theory is another today",
    CHANGED: "the kernel's device code is another today, with the same schedule and theory",
    UNKNOWN: "the record does not say whether launches overlapped",
    IN_DOUBT: f"the same peer took less than 1/{DISPUTED} of the time in another run",
}


def question_of(record: Record) -> Question:
    """The problem that a record is about."""
    found: Question = problem_of(record.problem or {})
    return found


def layer_of(record: Record) -> Linear:
    """The linear layer that a record is about."""
    problem = question_of(record)
    assert isinstance(problem, Linear)
    return problem


def is_peer(record: Record) -> bool:
    """Whether a record is of another library's kernel."""
    return (record.kernel or "").startswith("peer:")


def cases(records: Sequence[Record]) -> list[Record]:
    """The first record of each of our kernels on each problem: a GPU gives one for each clock and schedule."""
    first: dict[str, Record] = {}
    for record in records:
        if record.kernel and not is_peer(record):
            first.setdefault(f"{record.kernel} {record.problem}", record)
    return list(first.values())


def best_peer(records: Sequence[Record], record: Record) -> Record | None:
    """The fastest peer that was timed in a record's run, on its problem, by its clock and at its pace."""
    same = [r for r in records if is_peer(r) and r.kernel not in MOVERS and r.us is not None]
    return min((r for r in same if _raced(r) == _raced(record)), key=lambda r: r.us or 0.0, default=None)


def read_of(records: Sequence[Record], record: Record, movement: str = READ) -> float | None:
    """Microseconds of the plain read, or copy, in a record's run, of its problem, by its clock and at its pace."""
    return next((r.us for r in records if r.kernel == movement and _raced(r) == _raced(record)), None)


def disputed(records: Sequence[Record], peer: Record) -> Record | None:
    """The fastest record of a peer on the same problem, machine, clock and pace, where it makes this one doubtful."""
    like = [r for r in records if r.kernel == peer.kernel and r.problem == peer.problem and r.us is not None]
    same = [r for r in like if (r.machine, r.clock, pace(r)) == (peer.machine, peer.clock, pace(peer))]
    least = min(same, key=lambda r: r.us or 0.0, default=None)
    return least if least and (peer.us or 0.0) > DISPUTED * (least.us or 0.0) else None


def measured(past: Archive, record: Record, clock: str) -> Record | None:
    """The newest time of a record's kernel on its problem and machine, with its schedule and as its launches are.

    Sustained, by the clock; searches and chains of layers left out.
    """
    same = _alike(past, record).records
    shown = Archive(tuple(r for r in same if r.metrics.get("stage") != SEARCH and pace(r) == "sustained"))
    for overlapping in dict.fromkeys((record.overlapping, None)):
        found = shown.timed(clock=clock, overlapping=overlapping)
        if found:
            return min(found, key=lambda r: r.us or 0.0)
    return None


def newest_times(past: Archive, named: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The newest sustained time by each clock of what has the named fields, with the record's source and run."""
    same = [r for r in past.where(on="gpu", **named).records if r.us and r.schedule and not is_chain(r)]
    shown = [r for r in same if pace(r) == "sustained" and r.metrics.get("stage") != SEARCH and r.clock]
    return {str(r.clock): {"us": r.us, "source": source_of(r), "run": r.run} for r in shown}


def counted(past: Archive, record: Record, field: str = "counters") -> Record | None:
    """The newest record of the same kernel, problem, machine and schedule that has counters, or simulated counts."""
    return _alike(past, record).newest_with(field)


def comparable(found: Sequence[Record]) -> bool:
    """Whether figures may be set against each other: all current, all with known launches or all without."""
    return len({r.overlapping is None for r in found}) <= 1 and not any(map(stale, found))


def times(records: Sequence[Record], past: Archive, clocks: Iterable[str] = CLOCKS) -> tuple[list[float], str]:
    """Times of all records in microseconds by one source: all measured by one clock, or all predicted; and its name."""
    for clock in clocks:
        found = [one for record in records if (one := measured(past, record, clock))]
        if len(found) == len(records) and comparable(found):
            return [r.us for r in found if r.us is not None], "measured"
    return [record.predicted_us or 0.0 for record in records], "predicted"


def stale(record: Record) -> str:
    """Why a record is no longer about its kernel as that is today, as the end of a sentence; empty where it is.

    A record of no kernel of ours never is.
    """
    if record.schedule is None or not record.kernel or not record.problem or is_peer(record):
        return ""
    return _stale(record.kernel, *map(_frozen, (record.problem, record.schedule, record.theory)), record.machine)


def changed(record: Record) -> bool:
    """Whether a record tells its kernel's device code and that is another today."""
    if record.code is None or record.kernel not in catalog.names():
        return False
    return record.code != code_digest(catalog.get(record.kernel).source)


def note(record: Record, found: Record | None = None) -> str:
    """What a row that shows a record, and what was measured of it, must say of them; mostly nothing."""
    shown = [record, *([found] if found else [])]
    timed = found is not None and found.us is not None
    unknown = timed and found.overlapping is None and record.overlapping is not None
    said = {STALE: any(map(stale, shown)), CHANGED: any(map(changed, shown)), UNKNOWN: unknown}
    return ", ".join(mark for mark, applies in said.items() if applies)


def source_of(record: Record) -> str:
    """Card and commit, and whether the record is stale or its kernel changed since."""
    marks = {STALE: stale(record), CHANGED: changed(record)}
    return ", ".join([record.source, *(mark for mark, applies in marks.items() if applies)])


def drawn(label: str, dots: Iterable[tuple[float, float, Record]], mark: Mark = "measured") -> list[Series]:
    """What records say as (x, y, record), as a series whose dots name kernel, schedule and record; none without any."""
    found = list(dots)
    points, titles = [(x, y) for x, y, _ in found], [_title(record) for _, _, record in found]
    return [Series(label, points, mark, titles)] if found else []


def _title(record: Record) -> str:
    what = " ".join([record.kernel or "", spell(record.schedule or {})]).strip()
    return f"{what}; {source_of(record)}, run {record.run}".lstrip("; ")


def ceilings(past: Archive, machine_name: str) -> tuple[Record, ...]:
    """The newest measured ceilings of a kind of card."""
    return past.timed(experiment="ceilings", machine=machine_name)


def read_rate(past: Archive, machine_name: str) -> tuple[float | None, str]:
    """(bytes per second, source) of the fastest read of the largest array on such a card; None where never measured."""
    reads = [r for r in ceilings(past, machine_name) if r.metrics.get("what") == "read"]
    if not reads:
        return None, ""
    best = max(reads, key=lambda r: (int(r.metrics["nbytes"] or 0), float(r.metrics["bytes_per_s"] or 0)))
    return float(best.metrics["bytes_per_s"] or 0), best.source


def machines_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each machine, the oldest machine first: what no table mixes."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.machine, []).append(record)
    return found


def pace(record: Record) -> Any:
    """Whether the card had rested before each sample; the oldest records, which do not say so, are sustained."""
    return record.metrics.get("pace", "sustained")


def _alike(past: Archive, record: Record) -> Archive:
    """The records of the same kernel, problem, schedule and machine."""
    return past.where(**{name: getattr(record, name) for name in ("kernel", "problem", "schedule", "machine")})


def _raced(record: Record) -> tuple[Any, ...]:
    """What contestants of one race have in common."""
    return record.run, record.problem, record.clock, pace(record)


def _frozen(value: Any) -> bytes:
    return msgspec.json.encode(value)


@lru_cache(maxsize=1 << 15)  # more than there are launches: a cache one too small, read in order, keeps none
def _stale(name: str, problem: bytes, schedule: bytes, theory: bytes, machine_name: str) -> str:
    try:
        kernel, target = catalog.get(name), machine(machine_name)
        asked = problem_of(msgspec.json.decode(problem))
        parsed = recorded_schedule(kernel, msgspec.json.decode(schedule))
        kernel.launches(asked, parsed, target)
        then = msgspec.json.decode(theory) or {}
        now = kernel.module.theory(asked, parsed, target).as_dict() if then else {}
    except LabError as error:
        return f"can no longer run: {error}"
    both = {field: (then[field], now[field]) for field in then if None not in (then[field], now.get(field))}
    changed = [f"{field} {was:,}, now {is_:,}" for field, (was, is_) in both.items() if was != is_]
    return f"is of another theory: {'; '.join(changed)}" if changed else ""
