"""Three columns: what a table of an experiment shows of its records."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from experiments.running.jobs import problem_of
from experiments.words import spell
from lab.explain import explain
from lab.problems import Linear, Question
from lab.record import Archive, Record
from sim.machine import machine

MEGA = 1e6
READ, COPY = "peer:read", "peer:copy"  # what only moves as many bytes: floors, and no rivals
CLOCKS = {"cold": "cold L2", "graph": "in a graph"}

# Counts fields that a kernel's table shows, in megabytes or in millions of operations.
_SHOWN = {
    "hbm_read_bytes": "HBM read, MB",
    "l2_to_sm_bytes": "L2 to SM, MB",
    "mma_flops": "tensor-core MFLOP",
}


@dataclass(frozen=True)
class Row:
    """One quantity of one case by theory, simulation and measurement; None where a source does not give it.

    `source` is the card and commit of the measured figure.
    """

    case: str
    quantity: str
    theory: float | None
    simulated: float | None
    measured: float | None
    source: str = ""


@dataclass(frozen=True)
class Verdict:
    """An experiment's answer: one sentence made of its numbers, and whether the claim it tests held."""

    passed: bool
    sentence: str


def question_of(record: Record) -> Question:
    """The problem that a record is about."""
    found: Question = problem_of(record.problem or {})
    return found


def layer_of(record: Record) -> Linear:
    """The linear layer that a record is about."""
    problem = question_of(record)
    assert isinstance(problem, Linear)
    return problem


def size_of(record: Record) -> str:
    """The words of a record's problem, without its kind."""
    return spell({name: value for name, value in (record.problem or {}).items() if name != "kind"})


def kernel_rows(record: Record, past: Archive, case: str) -> Iterator[Row]:
    """Time and traffic of a kernel: floor, prediction and median time; theory, simulation and hardware counters."""
    floor = explain(question_of(record), machine(record.machine)).roofline.floor_us
    timed = {clock: measured(past, record, clock) for clock in CLOCKS}
    for clock, found in timed.items():
        if found:
            yield Row(case, f"time {CLOCKS[clock]}, us", floor, record.predicted_us, found.us, found.source)
            for peer in past.where(run=found.run, problem=found.problem, clock=clock).records:
                if is_peer(peer):
                    yield Row(case, f"{peer.kernel} {CLOCKS[clock]}, us", floor, None, peer.us, peer.source)
    if not any(timed.values()):
        yield Row(case, "time, us", floor, record.predicted_us, None)
    counted = past.newest_with("counters", kernel=record.kernel, problem=record.problem)
    counters = (counted.counters if counted else None) or {}
    columns: list[Mapping[str, float | None]] = [record.theory or {}, record.simulated or {}, counters]
    theory, simulated, read = (_intensity(question_of(record).flops, column) for column in columns)
    yield Row(case, "FLOP per HBM byte", theory, simulated, read, counted.source if counted else "")
    for field, quantity in _SHOWN.items():
        values = [None if column.get(field) is None else (column[field] or 0) / MEGA for column in columns]
        if any(values):
            theory, simulated, read = values
            yield Row(case, quantity, theory, simulated, read, counted.source if counted else "")


def _intensity(flops: int, counts: Mapping[str, float | None]) -> float | None:
    moved = [counts.get(field) for field in ("hbm_read_bytes", "hbm_write_bytes")]
    known = [nbytes for nbytes in moved if nbytes is not None]
    return flops / sum(known) if len(known) == len(moved) and any(known) else None


def is_peer(record: Record) -> bool:
    """Whether a record is of another library's kernel."""
    return (record.kernel or "").startswith("peer:")


def best_peer(records: Sequence[Record], record: Record) -> Record | None:
    """The fastest peer that was timed in a record's run, on its problem and by its clock."""
    same = [r for r in records if is_peer(r) and r.kernel not in (READ, COPY) and r.us is not None]
    same = [r for r in same if (r.run, r.problem, r.clock) == (record.run, record.problem, record.clock)]
    return min(same, key=lambda r: r.us or 0.0) if same else None


def read_of(records: Sequence[Record], record: Record, movement: str = READ) -> float | None:
    """Microseconds of the plain read, or copy, in a record's run, of its problem and by its clock."""
    same = (record.run, record.problem, record.clock)
    return next((r.us for r in records if r.kernel == movement and (r.run, r.problem, r.clock) == same), None)


def cases(records: Sequence[Record]) -> list[Record]:
    """The first record of each of our kernels on each problem: a GPU gives one for each clock and schedule."""
    first: dict[str, Record] = {}
    for record in records:
        if record.kernel and not is_peer(record):
            first.setdefault(f"{record.kernel} {record.problem}", record)
    return list(first.values())


def measured(past: Archive, record: Record, clock: str) -> Record | None:
    """The fastest schedule of the newest run that timed a record's kernel on its problem by a clock."""
    timed = past.timed(kernel=record.kernel, problem=record.problem, clock=clock)
    return min(timed, key=lambda r: r.us or 0.0) if timed else None


def times(records: Sequence[Record], past: Archive) -> tuple[list[float], str]:
    """Times of all records in microseconds by one source: all measured by one clock, or all predicted; and its name."""
    for clock in CLOCKS:
        found = [measured(past, record, clock) for record in records]
        if all(found):
            return [r.us for r in found if r and r.us is not None], "measured"
    return [record.predicted_us or 0.0 for record in records], "predicted"
