"""The small kernels of a step, which move each byte once: beside a plain copy of as many, and PyTorch's, in one run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.lookup import COPY, best_peer, is_peer, question_of, read_of
from experiments.rows import Row, Verdict, time_row, timed_by, untimed
from experiments.running.backends import Backend
from experiments.running.formats import chosen_job
from experiments.running.jobs import Search
from experiments.words import spell
from lab.problems import Problem
from lab.problems.embedding import Embedding
from lab.problems.rmsnorm import RMSNorm
from lab.problems.rope_append import RopeAppend
from lab.problems.sampling import Sampling
from lab.problems.swiglu import SwiGLU
from lab.record import Archive, Record
from sim.errors import InputError

QUESTION = "How far are the small kernels of a step from a copy of their bytes, and from PyTorch's compiled ones?"

VOCAB, PAGE = 128256, 64
LARGE: tuple[Problem, ...] = (
    RMSNorm(8192, 8192),
    SwiGLU(2048, 14336),
    RopeAppend(8192, 32, 8, page=PAGE),
    Embedding(8192, 4096, vocab=VOCAB),
)
SMALL: tuple[Problem, ...] = (
    *(RMSNorm(m, 4096) for m in (1, 64)),
    *(SwiGLU(m, 14336) for m in (1, 64)),
    *(RopeAppend(m, 32, 8, page=PAGE) for m in (1, 64)),
    Embedding(64, 4096, vocab=VOCAB),
    *(Sampling(m, VOCAB, settings=settings) for m in (1, 64) for settings in ("greedy", "plain", "filtered")),
)
OF_COPY = 1.05  # times a copy of its bytes, where these are many
OF_PEER = 1.0  # times the best peer, where they are few


@dataclass(frozen=True)
class Options:
    """`tune` searches the best schedules first. What has not begun after `seconds` is skipped.

    `kind` is that of the problems to be measured, all where it is empty.
    """

    kind: str = ""
    rounds: int = 30
    seconds: int = 120
    tune: bool = False

    def __post_init__(self) -> None:
        if min(self.rounds, self.seconds) < 1:
            raise InputError(f"rounds and seconds are at least 1; got {self.rounds}, {self.seconds}")
        kinds = sorted({problem.kind for problem in (*SMALL, *LARGE)})
        if self.kind and self.kind not in kinds:
            raise InputError(f"kind is {', '.join(kinds)}, or empty for all; got {self.kind!r}")

    @property
    def problems(self) -> list[Problem]:
        return [problem for problem in (*SMALL, *LARGE) if self.kind in ("", problem.kind)]


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """What the lab chooses, in a graph, plain launches."""
    how = {"plain": True, "rounds": options.rounds, "experiment": "rowwise_bars"}
    if options.tune:
        searches = [Search(problem=p.as_dict(), clock="graph", **how) for p in options.problems]
        yield from backend.tuned(searches, options.seconds)
    jobs = [
        chosen_job(problem, backend.machine, {"bar": problem.kind}, clocks=("graph",), reads=True, **how)
        for problem in options.problems
    ]
    yield from backend.timed(jobs, options.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Each problem's floor, prediction and time; the copy's and the best peer's."""
    every = [*past.records, *records]
    for record in _ours(records, past):
        case = _named(record)
        yield time_row(case, "us in a graph", record, record)
        copy, peer = read_of(every, record, COPY), best_peer(every, record)
        if copy:
            yield Row(case, "copy of as many bytes, us", None, None, copy, record.source)
        if peer:
            yield timed_by(Row(case, f"{peer.kernel}, us", None, None, None), peer)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """The large one against the copy, the small ones against the best peer."""
    every, said, passed = [*past.records, *records], [], True
    for record in _ours(records, past):
        copy, peer = read_of(every, record, COPY), best_peer(every, record)
        if record.us is None:
            continue
        case = _named(record)
        if question_of(record) in LARGE and copy:
            said.append(f"{case} takes {record.us / copy:.3f} of a copy (bar {OF_COPY})")
            passed &= record.us <= OF_COPY * copy
        elif peer and peer.us:
            said.append(f"{case} takes {record.us / peer.us:.3f} of {peer.kernel} (bar {OF_PEER})")
            passed &= record.us <= OF_PEER * peer.us
    return Verdict(passed, "; ".join(said) + ".") if said else untimed(records, "Not timed yet.")


def _ours(records: Sequence[Record], past: Archive) -> list[Record]:
    """The newest chosen one of each problem among these records, else among those measured before."""
    found: dict[str, Record] = {}
    here = records[0].machine if records else ""
    for record in [*past.where(experiment="rowwise_bars", on="gpu", machine=here).records, *records]:
        chosen = record.kernel and not is_peer(record) and "stage" not in record.metrics
        if chosen and (record.us is not None or str(record.problem) not in found):
            found[str(record.problem)] = record
    return list(found.values())


def _named(record: Record) -> str:
    return spell(record.problem or {}).removeprefix("kind=")
