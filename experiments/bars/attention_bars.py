"""Attention against the plain read of its cache and other libraries, part by part, in one run each."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from experiments import markdown
from experiments.bars import attention_decode, attention_prefill
from experiments.lookup import GATHER, READ, STALE, machines_of, source_of, stale
from experiments.markdown import figure
from experiments.rows import Row, Verdict, size_of, time_row, timed_by, untimed
from experiments.running.backends import Backend
from experiments.running.formats import chosen_job
from experiments.running.jobs import Job, Search
from lab.problems import Attention
from lab.record import Archive, Record
from sim.errors import InputError

QUESTION = "How far is attention from the time that its bytes or its operations take, and from other libraries?"

CLOCK = "cold"
PLANNING = "planning"  # the part that is not of single launches
PARTS = {**attention_prefill.PARTS, **attention_decode.PARTS}
_HEADINGS = ("part", "problem", "us", "plain read, us", "best peer, us", "x best peer", "bars")


@dataclass(frozen=True)
class Options:
    """`part` names the problems, of several parts joined by +; `tune` searches them first.

    `only` keeps those whose words in the table have it, such as "16 / 1 heads". What has not begun after `seconds` is
    skipped.
    """

    part: str = "decode"
    only: str = ""
    rounds: int = 20
    seconds: int = 500
    tune: bool = False

    def __post_init__(self) -> None:
        if unknown := [part for part in self.parts if part not in PARTS]:
            raise InputError(f"part is {', '.join(PARTS)}, or some of them joined by +; got {unknown[0]!r}")
        if min(self.rounds, self.seconds) < 1:
            raise InputError(f"rounds and seconds are at least 1; got {self.rounds}, {self.seconds}")
        if not self.problems:
            raise InputError(f"no problem of part={self.part} has {self.only!r} in its words")

    @property
    def parts(self) -> list[str]:
        return self.part.split("+")

    @property
    def problems(self) -> list[tuple[str, Attention]]:
        return [(part, p) for part in self.parts for p in PARTS[part] if self.only in _problem(p)]


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """What the lab chooses for each problem of a part, small ones first, beside its peers and the plain read."""
    problems = [(part, problem) for part, problem in options.problems if part != PLANNING]
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
    asked = [p for part, p in options.problems if part == PLANNING]
    pairs = [p for p in asked if backend.on == "sim" or not p.uniform]
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


def table(past: Archive) -> str:
    """The newest time of each problem on each card beside the plain read and the best peer of its run, part by part."""
    every = machines_of(past.where(experiment="attention_bars", on="gpu").records)
    parts = [_of_machine(_newest(timed)) for timed in every.values()]
    return "\n\n".join(parts) or "No records yet: `lab run attention_bars --on gpu` makes them."


def _newest(timed: Sequence[Record]) -> list[Record]:
    """Each problem's newest run, with all that was timed in it."""
    raced = [r for r in timed if "stage" not in r.metrics]
    runs = {(r.metrics.get("bar"), str(r.problem)): r.run for r in raced if r.us and r.schedule is not None}
    return [r for r in raced if runs.get((r.metrics.get("bar"), str(r.problem)), r.run) == r.run]


def _of_machine(records: Sequence[Record]) -> str:
    timed = {(str(cell.record.metrics["bar"]), cell.problem): cell for cell in cells(records) if cell.record.us}
    asked = ((part, problem) for part, problems in PARTS.items() for problem in problems)
    found = [timed[each] for each in asked if each in timed]  # not what a part once asked
    sources = markdown.measured_on(source_of(cell.record) for cell in found)
    return f"{markdown.table(_HEADINGS, map(_cells, found))}\n\n{sources}"


def _cells(cell: attention_decode.Cell) -> list[str]:
    us, peer = cell.record.us or 0.0, cell.peer
    beside = f"{figure(peer.us)} ({(peer.kernel or '').removeprefix('peer:')})" if peer and peer.us else "-"
    misses = ", ".join(f"{name.removeprefix('peer:')} + {over - 1:.1%}" for name, over in cell.missed.items())
    return [
        str(cell.record.metrics["bar"]),
        _problem(cell.problem),
        figure(us) + (f", {STALE}" if stale(cell.record) else ""),
        figure(cell.gather or cell.read) if cell.gather or cell.read else "-",
        beside,
        f"{peer.us / us:.3f}" if peer and peer.us else "-",
        misses or ("met" if cell.limits else "-"),
    ]


def _problem(p: Attention) -> str:
    """A problem in few words: what differs from bf16, contiguous, and 128 elements a head."""
    lengths = Counter(p.kv_lens or [p.kv_len] * p.batch)
    of_lengths = (f"{times:,} x {length:,}" for length, times in lengths.items())
    words = [" and ".join(of_lengths), f"{p.q_heads} / {p.kv_heads} heads"]
    words += [f"{p.q_len:,} queries"] if p.q_len not in (1, p.kv_len) else []
    words += ["" if p.causal else "full"] if p.q_len == p.kv_len else []
    words += [f"page {p.page}"] if p.page else []
    words += [p.kv] if p.kv != "bf16" else []
    words += ["queries too"] if p.activations == "fp8" else []
    words += ["planned by arithmetic"] if p.settled and p.uniform else []
    return ", ".join(filter(None, words))
