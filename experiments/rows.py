"""Three columns: what a table of an experiment shows of its records."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from experiments.lookup import CLOCKS, IN_DOUBT, counted, disputed, is_peer, measured, note, question_of
from experiments.words import spell
from lab.explain import explain
from lab.record import Archive, Record, Spread
from sim.machine import machine

MEGA = 1e6

# Counts fields that a kernel's table shows, in megabytes or in millions of operations.
_SHOWN = {
    "hbm_read_bytes": "HBM read, MB",
    "l2_to_sm_bytes": "L2 to SM, MB",
    "mma_flops": "tensor-core MFLOP",
}


@dataclass(frozen=True)
class Row:
    """One quantity of one case by theory, simulation and measurement; None where a source does not give it.

    `source` is the card and commit of the measured figure, `spread` that of the samples whose median it is, `run` where
    `lab compare` finds it; `note` says what is the matter with the figures. Where `percent`, they are shares of 1.
    """

    case: str
    quantity: str
    theory: float | None
    simulated: float | None
    measured: float | None
    source: str = ""
    note: str = ""
    spread: Spread | None = None
    run: str = ""
    percent: bool = False

    @property
    def shown(self) -> str:
        """The quantity, with the note in brackets."""
        return f"{self.quantity} ({self.note})" if self.note else self.quantity


@dataclass(frozen=True)
class Verdict:
    """An experiment's answer: one sentence made of its numbers, and whether the claim it tests held.

    None is undecided: nothing was measured, and a prediction refutes no claim about times.
    """

    passed: bool | None
    sentence: str


def untimed(records: Sequence[Record], sentence: str) -> Verdict:
    """The answer of records without a time: undecided by the simulated chip, failed on a GPU."""
    return Verdict(None if all(r.on == "sim" for r in records) else False, sentence)


def size_of(record: Record) -> str:
    """The words of a record's problem, without its kind."""
    return spell({name: value for name, value in (record.problem or {}).items() if name != "kind"})


def floor_of(record: Record) -> float:
    """Microseconds that a record's problem takes at least on the record's machine, at data-sheet rates."""
    return explain(question_of(record), machine(record.machine)).roofline.floor_us


def time_row(case: str, quantity: str, record: Record, found: Record | None) -> Row:
    """The floor of a record's problem, the time that it predicts, and the time of what was found measured of it."""
    row = Row(case, quantity, floor_of(record), record.predicted_us, None, note=note(record, found))
    return timed_by(row, found) if found else row


def timed_by(row: Row, found: Record) -> Row:
    """The row with the time of a record as its measured figure; as it is where the record has none."""
    if found.us is None:
        return row
    return replace(row, measured=found.us, source=found.source, spread=found.spread, run=found.run)


def kernel_rows(record: Record, past: Archive, case: str) -> Iterator[Row]:
    """Time and traffic of a kernel: floor, prediction and median time; theory, simulation and hardware counters."""
    timed = {clock: found for clock in CLOCKS if (found := measured(past, record, clock))}
    for clock, found in timed.items():
        yield time_row(case, f"time {CLOCKS[clock]}, us", record, found)
        for peer in past.where(run=found.run, problem=found.problem, clock=clock).records:
            if is_peer(peer):
                doubt = IN_DOUBT if disputed(past.records, peer) else ""
                what = f"{peer.kernel} {CLOCKS[clock]}, us"
                yield timed_by(Row(case, what, floor_of(record), None, None, note=doubt), peer)
    if not timed:
        yield time_row(case, "time, us", record, None)
    read = counted(past, record)
    source, doubt = read.source if read else "", note(record, read)
    columns: list[Mapping[str, float | None]] = [record.theory or {}, record.simulated or {}, counters_of(read)]
    yield Row(case, "FLOP per HBM byte", *(_intensity(question_of(record).flops, c) for c in columns), source, doubt)
    for field, quantity in _SHOWN.items():
        values = [None if column.get(field) is None else (column[field] or 0) / MEGA for column in columns]
        if any(values):
            yield Row(case, quantity, *values, source, doubt)


def counters_of(record: Record | None) -> Mapping[str, float]:
    """A record's hardware counters, empty where there are none."""
    return (record.counters if record else None) or {}


def _intensity(flops: int, counts: Mapping[str, float | None]) -> float | None:
    moved = [counts.get(field) for field in ("hbm_read_bytes", "hbm_write_bytes")]
    known = [nbytes for nbytes in moved if nbytes is not None]
    return flops / sum(known) if len(known) == len(moved) and any(known) else None
