"""Attention against the plain read of its cache and other libraries, part by part, in one run each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.bars import attention_decode, attention_prefill
from experiments.lookup import GATHER, READ
from experiments.rows import Row, Verdict, size_of, time_row, timed_by, untimed
from experiments.running.backends import Backend
from experiments.running.formats import chosen_job
from experiments.running.jobs import Job, Search
from lab.record import Archive, Record
from sim.errors import InputError

QUESTION = "How far is attention from the time that its bytes or its operations take, and from other libraries?"

CLOCK = "cold"
PLANNING = "planning"  # the part that is not of single launches
PARTS = {**attention_decode.PARTS, **attention_prefill.PARTS}


@dataclass(frozen=True)
class Options:
    """`part` names the problems, of several parts joined by +; `tune` searches them first.

    What has not begun after `seconds` is skipped.
    """

    part: str = "decode"
    rounds: int = 20
    seconds: int = 500
    tune: bool = False

    def __post_init__(self) -> None:
        if unknown := [part for part in self.parts if part not in PARTS]:
            raise InputError(f"part is {', '.join(PARTS)}, or some of them joined by +; got {unknown[0]!r}")
        if min(self.rounds, self.seconds) < 1:
            raise InputError(f"rounds and seconds are at least 1; got {self.rounds}, {self.seconds}")

    @property
    def parts(self) -> list[str]:
        return self.part.split("+")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """What the lab chooses for each problem of a part, small ones first, beside its peers and the plain read."""
    problems = [(part, problem) for part in options.parts if part != PLANNING for problem in PARTS[part]]
    problems.sort(key=lambda each: each[1].kv_bytes)  # what is skipped is little
    how: dict[str, Any] = {"plain": True, "rounds": options.rounds, "experiment": "attention_bars"}
    if options.tune:
        yield from backend.tuned(
            [Search(problem=p.as_dict(), clock=CLOCK, **how) for _, p in problems], options.seconds
        )
    jobs = [  # prefill is not bound by bytes
        chosen_job(p, backend.machine, {"bar": part}, clocks=(CLOCK,), reads=part in attention_decode.PARTS, **how)
        for part, p in problems
    ]
    if jobs:
        yield from backend.timed(jobs, options.seconds)
    if PLANNING in options.parts:
        yield from _planning(options, backend)


def _planning(options: Options, backend: Backend) -> Iterator[Record]:
    """Layers of a step, lengths asked for or not; a GPU's job is both of a pair."""
    pairs = [p for p in PARTS[PLANNING] if backend.on == "sim" or not p.uniform]
    facts = {"bar": PLANNING, "layers": attention_decode.LAYERS}
    how: dict[str, Any] = {"rounds": options.rounds, "experiment": "attention_bars", "kernel": "attention_split_kv"}
    yield from backend.layered([Job(problem=p.as_dict(), facts=facts, **how) for p in pairs], options.seconds)


def cells(records: Sequence[Record]) -> list[attention_decode.Cell]:
    """The problems of all parts among the records of one card, searches left out."""
    return [*attention_decode.cells(records), *attention_prefill.cells(records)]


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (all is of one run)
    """Each problem: its time, the read's, the best peer's."""
    for cell in cells(records):
        record, case = cell.record, size_of(cell.record)
        yield time_row(case, f"{record.kernel}, us", record, record)
        if cell.read:
            yield Row(case, f"{READ}, us", None, None, cell.read, record.source)
        if cell.gather:
            yield Row(case, f"{GATHER}, us", None, None, cell.gather, record.source)
        if cell.peer:
            yield timed_by(Row(case, f"{cell.peer.kernel}, us", None, None, None), cell.peer)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """How many problems stand within their limits, the worst of the others, and how much longer peers take."""
    found = cells(records)
    timed = [cell for cell in found if cell.record.us]
    if not timed:
        return untimed(records, f"{len(found)} problems were predicted, none was timed.")
    judged = [cell for cell in timed if cell.limits]
    bad = [cell for cell in judged if cell.missed]
    parts = [f"{len(judged) - len(bad)} of {len(judged)} problems stand within their limits"]
    if bad:
        worst = max(bad, key=lambda cell: max(cell.missed.values()))
        limit, times = max(worst.missed.items(), key=lambda item: item[1])
        parts.append(f"the farthest, {size_of(worst.record)}, takes {times:.3f} times what {limit} allows")
    over, passed = attention_decode.over_peers(timed), not bad and len(timed) == len(found)
    if over is not None:
        parts.append(f"the best peers take {over:.3f} times as long (bar {attention_decode.PEERS_OVER})")
        passed &= over >= attention_decode.PEERS_OVER
    if len(timed) < len(found):
        parts.append(f"{len(found) - len(timed)} have no time")
    return Verdict(passed, "; ".join(parts) + ".")
