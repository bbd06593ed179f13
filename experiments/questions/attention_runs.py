"""What the questions about attention share: kernels on problems by the cold clock, and their rows."""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.chart import Series
from experiments.lookup import cases, drawn, measured, note, question_of
from experiments.rows import MEGA, Row, time_row
from experiments.running.formats import chosen_job
from experiments.running.jobs import Job
from lab.problems import Attention, Problem
from lab.record import Archive, Record
from sim.machine import Machine

CLOCK = "cold"  # a layer's cache left L2 long ago, when its turn comes again


def job(problem: Problem, machine: Machine, experiment: str, rounds: int, kernel: str = "") -> Job:
    """A kernel on a problem beside its peers; without a name the kernel and schedule that the lab chooses."""
    how: dict[str, Any] = {"clocks": (CLOCK,), "plain": True, "rounds": rounds, "experiment": experiment}
    if kernel:
        return Job(kernel=kernel, problem=problem.as_dict(), **how)
    return chosen_job(problem, machine, {}, **how)


def runs_of(records: Sequence[Record]) -> list[Record]:
    """One record of each kernel on each problem; those that a time box skipped are left out."""
    return [record for record in cases(records) if record.predicted_us]


def attention_of(record: Record) -> Attention:
    """The attention that a record is about."""
    problem = question_of(record)
    assert isinstance(problem, Attention)
    return problem


def run_rows(record: Record, past: Archive, case: str) -> Iterator[Row]:
    """A kernel's time, and what it moves between HBM and the chip."""
    yield time_row(case, f"{record.kernel}, us", record, measured(past, record, CLOCK))
    moved = [None if counts is None else hbm_bytes(counts) / MEGA for counts in (record.theory, record.simulated)]
    yield Row(case, "HBM read and written, MB", *moved, None, note=note(record))


def hbm_bytes(counts: object) -> float:
    """Bytes between HBM and the chip, of counts as records hold them."""
    assert isinstance(counts, dict)
    return float((counts.get("hbm_read_bytes") or 0) + (counts.get("hbm_write_bytes") or 0))


def times_of(label: str, points: Sequence[tuple[float, Record]], past: Archive) -> list[Series]:
    """The predicted times of records against a quantity, and those measured, in microseconds."""
    predicted = ((x, record.predicted_us or 0.0, record) for x, record in points)
    timed = ((x, found.us, found) for x, record in points if (found := measured(past, record, CLOCK)) and found.us)
    return [*drawn(label, predicted, "predicted"), *drawn(label, timed)]
