"""What it costs to choose by prediction alone: the pick on shapes that nobody chose, beside the best of a search."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments import markdown
from experiments.lookup import best_peer, is_peer, machines_of, source_of
from experiments.markdown import figure
from experiments.rows import Row, Verdict, size_of, time_row, timed_by, untimed
from experiments.running.backends import Backend
from experiments.running.formats import formats_of, in_format
from experiments.running.jobs import Search
from lab.choice import candidate_name, predicted_best, schedule_words
from lab.kernel import RANKING_CLOCK, schedule_fields
from lab.problems import Linear
from lab.record import Archive, Record
from lab.tuned import FINAL
from sim.errors import InputError

QUESTION = "How much longer than the best of a search takes what predictions alone pick, on shapes that nobody chose?"

MULTIPLE = 16  # n and k are multiples of it
LEAST, MOST = 512, 20480  # n and k
NEAR, NEARLY_ALL = 0.05, 0.9  # so many picks take at most so much longer than the best
FAR = 0.15  # and all of them at most this
DECODE = 128  # tokens up to which no pick is to take
PEER = 1.10  # times the best peer's time

_HEADINGS = ["m x n x k", "weights", "picked", "us", "the best", "us", "regret", "best peer, us", "of its time"]


@dataclass(frozen=True)
class Options:
    """Draws `count` shapes by `seed`: m up to `most` tokens, by its logarithm; formats in turn. A run begins at
    number `first`.

    The search tries so many `candidates` of each kernel, by prediction the best, and times its finalists `rounds`
    times. What has not begun after `seconds` is skipped.
    """

    formats: str = "bf16+fp8+int4_g128"
    count: int = 40
    seed: int = 17
    first: int = 0
    most: int = 8192
    candidates: int = 12
    rounds: int = 15
    seconds: int = 540

    def __post_init__(self) -> None:
        formats_of(self.formats)
        if not 0 <= self.first < self.count:
            raise InputError(f"of {self.count} shapes the first is 0 to {self.count - 1}; first={self.first}")
        if min(self.count, self.most, self.candidates, self.rounds, self.seconds) < 1:
            given = f"{self.count}, {self.most}, {self.candidates}, {self.rounds}, {self.seconds}"
            raise InputError(f"count, most, candidates, rounds and seconds are at least 1; got {given}")


def draw(options: Options) -> list[Linear]:
    """The layers, each prefix of them with all formats alike often."""
    rng, names = random.Random(options.seed), formats_of(options.formats)
    found = []
    for number in range(options.count):
        m = round(options.most ** rng.random())
        n, k = (MULTIPLE * rng.randint(LEAST // MULTIPLE, MOST // MULTIPLE) for _ in "nk")
        found.append(in_format(names[number % len(names)], Linear(m, n, k)))
    return found


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Each layer's pick, tuned entries left aside, among what a search tries, and peers: plain launches in a graph."""
    searches = []
    for number, problem in [*enumerate(draw(options))][options.first :]:
        picked = predicted_best(problem, backend.machine)
        name, fields = picked.kernel.name, schedule_fields(picked.schedule)
        searches.append(
            Search(
                problem=problem.as_dict(),
                most=options.candidates,
                picked=(name, schedule_words(fields)),
                clock=RANKING_CLOCK,
                plain=True,
                rounds=options.rounds,
                experiment="choice_regret",
                facts={"pick": candidate_name(name, fields), "seed": options.seed, "number": number},
            )
        )
    yield from backend.searched(searches, options.seconds)


@dataclass(frozen=True)
class Case:
    """A layer's pick, the fastest of its last race, which may be the pick, and the best peer; None where not timed."""

    pick: Record | None
    best: Record
    peer: Record | None

    @property
    def regret(self) -> float | None:
        """How much longer the pick takes, as a share of the best time."""
        return self.pick.us / self.best.us - 1 if self.pick and self.pick.us and self.best.us else None

    @property
    def of_peer(self) -> float | None:
        """The pick's time over the best peer's."""
        return self.pick.us / self.peer.us if self.pick and self.pick.us and self.peer and self.peer.us else None


def cases(records: Sequence[Record]) -> list[Case]:
    """The layers whose races ended, in the order in which they were drawn."""
    found = []
    for problem in dict.fromkeys(str(r.problem) for r in records):
        raced = [r for r in records if str(r.problem) == problem and r.metrics.get("stage") == FINAL]
        ours = [r for r in raced if not is_peer(r) and r.us is not None]
        if ours:
            best = min(ours, key=lambda r: r.us or 0.0)
            pick = next((r for r in ours if _name(r) == r.metrics.get("pick")), None)
            found.append(Case(pick, best, best_peer(raced, best)))
    return found


def _name(record: Record) -> str:
    return candidate_name(record.kernel or "", record.schedule or {})


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (all is of one run)
    """Each layer: the pick, the best, the peer."""
    for case in cases(records):
        size = size_of(case.best)
        for what, record in (("the pick", case.pick), ("the best", case.best)):
            if record:
                yield time_row(size, f"{what}, {record.kernel}, us", record, record)
        if case.peer:
            yield timed_by(Row(size, f"{case.peer.kernel}, us", None, None, None), case.peer)
    for record in records:
        if record.on == "sim":
            yield time_row(size_of(record), f"the pick, {record.kernel}, us", record, None)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """How many picks are near the best, the farthest of them, and how they stand beside peers at few tokens."""
    found = cases(records)
    if not found:
        return untimed(records, f"{len(records)} layers were predicted, none was timed.")
    regrets = {size_of(c.best): c.regret for c in found if c.regret is not None}
    near, far = (sum(regret <= most for regret in regrets.values()) for most in (NEAR, FAR))
    parts = [f"{near} of {len(found)} picks take at most {NEAR:.0%} longer than the best of a search, {far} {FAR:.0%}"]
    if regrets:
        worst = max(regrets, key=lambda name: regrets[name])
        parts.append(f"the farthest {regrets[worst]:.1%} ({worst})")
    few = {
        size_of(c.best): c.of_peer
        for c in found
        if c.of_peer is not None and int((c.best.problem or {})["m"]) <= DECODE
    }
    slow = [name for name, share in few.items() if share > PEER]
    if few:
        last = max(few, key=lambda name: few[name])
        parts.append(
            f"of {len(few)} up to m = {DECODE} beside a peer {len(slow)} take more than {PEER:.2f} of its time, the "
            f"most {few[last]:.3f} ({last})"
        )
    skipped = sum(1 for r in records if "failure" in r.metrics and "stage" not in r.metrics)
    if skipped:
        parts.append(f"{skipped} layers were not begun in time")
    held = near >= NEARLY_ALL * len(found) and far == len(found) and not slow and not skipped
    return Verdict(held, "; ".join(parts) + ".")


def table(past: Archive) -> str:
    """On each machine the newest draw of shapes, the largest regret first."""
    every = machines_of(past.where(experiment="choice_regret", on="gpu").records)
    parts = [
        _of_machine([r for r in timed if r.metrics.get("seed") == timed[-1].metrics.get("seed")])
        for timed in every.values()
    ]
    return "\n\n".join(parts) or "No records yet: `lab run choice_regret --on gpu` makes them."


def _of_machine(records: Sequence[Record]) -> str:
    lines = []
    for case in sorted(cases(records), key=lambda case: -(case.regret or 0.0)):
        p = case.best.problem or {}
        picked = [f"`{case.pick.kernel}`", figure(case.pick.us)] if case.pick else ["-", "-"]
        lines.append(
            [
                f"{p['m']:,} x {p['n']:,} x {p['k']:,}",
                p["weights"],
                *picked,
                f"`{case.best.kernel}`",
                figure(case.best.us),
                "-" if case.regret is None else f"{case.regret:.1%}",
                figure(case.peer.us) if case.peer else "-",
                f"{case.of_peer:.3f}" if case.of_peer else "-",
            ]
        )
    sources = markdown.measured_on(source_of(r) for r in records if r.us)
    return f"{verdict(records, past=Archive(())).sentence}\n\n{markdown.table(_HEADINGS, lines)}\n\n{sources}"
