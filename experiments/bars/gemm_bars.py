"""The top of the GEMM ladder: the chosen kernels on the shapes of prefill, each beside cuBLAS in one run."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

from experiments import markdown
from experiments.bars import choice_regret
from experiments.lookup import best_peer, is_peer, machines_of, note
from experiments.markdown import figure
from experiments.rows import Row, Verdict, time_row, timed_by, untimed
from experiments.running.backends import Backend
from experiments.running.formats import chosen_job
from experiments.running.jobs import Job, Search
from lab.choice import predicted_best, schedule_words
from lab.kernel import schedule_fields
from lab.problems import Linear
from lab.record import Archive, Record, Value
from sim.errors import InputError

QUESTION = "How close do the kernels that the lab chooses come to cuBLAS, shape by shape?"

LARGE = (
    (2048, 4096, 4096),
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (2048, 13824, 5120),
    (2048, 5120, 13824),
    (16384, 4096, 4096),
)
LAYERS = ((4096, 4096), (14336, 4096), (4096, 14336))  # n, k
RAGGED = (
    (1999, 5008, 4104),
    (1001, 4104, 4104),
    (3001, 11000, 4040),
    (777, 14344, 4104),
    (2504, 2520, 2536),
    (777, 4095, 11001),
)
DRAWN = choice_regret.Options(formats="bf16", count=40, seed=20, most=128)
BURST_ROUNDS = 8


@dataclass(frozen=True)
class Case:
    """A problem and how it is timed, counted under the bar of that name."""

    bar: str
    problem: Linear
    clock: str = "cold"
    pace: str = "sustained"
    tuned: bool = True  # or chosen by prediction alone


@dataclass(frozen=True)
class Bar:
    """What cuBLAS's time over ours must be: its geometric mean over the cases, and its least."""

    mean: float
    least: float = 0.0


BARS = {
    "burst": Bar(1.01),
    "sustained": Bar(1.015, 0.98),
    "small": Bar(1.05, 0.97),
    "ragged": Bar(0.95, 0.95),
    "fp8 fast": Bar(1.06, 0.98),
    "fp8 float32": Bar(1.02, 0.98),
    "fp8 block": Bar(1.00),
    "short k": Bar(1.00, 1.00),
    "fp32": Bar(0.93),
    "drawn": Bar(0.0, 1 / 1.10),
}


def cases_of(part: str) -> list[Case]:
    """The cases of a part; raises InputError and lists the parts for an unknown one."""
    large = [Linear(*shape) for shape in LARGE]
    small = [Linear(m, n, k) for n, k in LAYERS for m in (64, 128, 256, 512, 1024)]
    fp8 = {mode: [_fp8(*shape, mode) for shape in LARGE] for mode in ("fast", "float32")}
    parts = {
        "large": [Case(pace, p, pace=pace) for p in large for pace in ("burst", "sustained")],  # while the card is cool
        "small": [Case("small", p, "graph" if p.m <= 256 else "cold") for p in small],
        "ragged": [Case("ragged", Linear(*shape)) for shape in RAGGED],
        "fp8": [Case(f"fp8 {mode}", p) for mode, problems in fp8.items() for p in problems],
        "fp8_block": [Case("fp8 block", Linear(*s, "fp8", "fp8", scales="block", accumulate="float32")) for s in LARGE],
        "short_k": [Case("short k", Linear(8192, 8192, k)) for k in (128, 256, 512, 1024)],
        "fp32": [Case("fp32", Linear(4096, 4096, 4096, "fp32"))],
        "drawn": [Case("drawn", p, "graph", tuned=False) for p in choice_regret.draw(DRAWN)],
    }
    if part not in parts:
        raise InputError(f"part is {', '.join(parts)}; got {part!r}")
    return parts[part]


def _fp8(m: int, n: int, k: int, accumulate: str) -> Linear:
    return Linear(m, n, k, "fp8", "fp8", scales="tensor", accumulate=accumulate)


@dataclass(frozen=True)
class Options:
    """`part` is large, small, ragged, fp8, fp8_block, short_k, fp32 or drawn; `tune` searches its shapes first.

    The search tries `most` candidates of each kernel, those predicted to be the fastest, or with 0 all of them.
    What has not begun after `seconds` is skipped.
    """

    part: str = "large"
    rounds: int = 30
    seconds: int = 540
    tune: bool = False
    most: int = 0

    def __post_init__(self) -> None:
        cases_of(self.part)
        if self.most and not self.tune:
            raise InputError("most is of a search: it goes with tune=true")
        if min(self.rounds, self.seconds) < 1 or self.most < 0:
            given = f"{self.rounds}, {self.seconds}, {self.most}"
            raise InputError(f"rounds and seconds are at least 1, most at least 0; got {given}")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """The chosen kernel of each case beside its peers."""
    end = time.monotonic() + options.seconds
    cases = cases_of(options.part)
    if options.tune:
        clocks = {case.problem: case.clock for case in cases}
        how: dict[str, Any] = {"most": options.most or None, "rounds": options.rounds, "experiment": "gemm_bars"}
        searches = [Search(problem=p.as_dict(), clock=clock, **how) for p, clock in clocks.items()]
        yield from backend.tuned(searches, options.seconds)
    jobs = [_job(case, options, backend) for case in cases]
    yield from backend.timed(jobs, max(0.0, end - time.monotonic()))


def _job(case: Case, options: Options, backend: Backend) -> Job:
    how: dict[str, Any] = {
        "clocks": (case.clock,),
        "paces": (case.pace,),
        "rounds": BURST_ROUNDS if case.pace == "burst" else options.rounds,
        "experiment": "gemm_bars",
    }
    facts: dict[str, Value] = {"part": options.part, "bar": case.bar}
    if case.tuned:
        return chosen_job(case.problem, backend.machine, facts, **how)
    picked = predicted_best(case.problem, backend.machine)
    words = schedule_words(schedule_fields(picked.schedule))
    return Job(kernel=picked.kernel.name, problem=case.problem.as_dict(), schedules=(words,), facts=facts, **how)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (all is of one run)
    """Each case: ours, the peer, and the peer's time over ours."""
    for record in own(records):
        case = f"{name_of(record)}, {record.metrics['bar']}"
        row = time_row(case, f"{record.kernel}, us", record, record)
        yield row
        other = best_peer(records, record)
        if other:
            yield timed_by(Row(case, f"{other.kernel}, us", row.theory, None, None), other)
            yield Row(case, "its time over ours", None, None, ratio(records, record), other.source)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """Each bar beside its figure."""
    judged = [judge(name, group, records) for name, group in by_bar(records).items()]
    if not judged:
        return Verdict(False, "Nothing was run.")
    answers = [j.passed for j in judged]
    passed = next((answer for answer in (False, None) if answer in answers), True)
    return Verdict(passed, " ".join(j.sentence for j in judged))


def judge(bar: str, group: Sequence[Record], records: Sequence[Record]) -> Verdict:
    """One bar and the records that count under it, out of all records of their runs."""
    ratios = {name_of(r): found for r in group if (found := ratio(records, r)) is not None}
    missing = [r for r in group if ratio(records, r) is None]
    why = ", ".join(sorted({str(r.metrics.get("failure", "no peer")) for r in missing}))
    lacking = f"; {len(missing)} of {len(group)} have no figure ({why})" if missing else ""
    if not ratios:
        return untimed(group, f"{bar}: predicted, not measured, for {len(group)} shapes.")
    lowest = min(ratios, key=lambda name: ratios[name])
    goal = BARS[bar]
    mean = exp(sum(map(log, ratios.values())) / len(ratios))
    held = mean >= goal.mean and ratios[lowest] >= goal.least and not missing
    return Verdict(
        held,
        f"{bar}: {mean:.3f} of cuBLAS (geometric mean of {len(ratios)}{_said(goal.mean, ', bar {}')}), least "
        f"{ratios[lowest]:.3f} at {lowest}{_said(goal.least, ' (bar {})')}{lacking}.",
    )


def _said(bar: float, words: str) -> str:
    """A bar in two decimals, or three where it has them; nothing where there is none."""
    return words.format(f"{bar:.3f}".removesuffix("0")) if bar else ""


def by_bar(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Our records under each bar, in the order of the run."""
    found: dict[str, list[Record]] = {}
    for record in own(records):
        found.setdefault(str(record.metrics["bar"]), []).append(record)
    return found


def own(records: Sequence[Record]) -> list[Record]:
    """The records of what was chosen, searches left out."""
    return [r for r in records if r.metrics.get("bar") in BARS and not is_peer(r)]


def ratio(records: Sequence[Record], record: Record) -> float | None:
    """The best peer's time over ours, in the run of the record; None where either has no time."""
    other = best_peer(records, record)
    return other.us / record.us if other and other.us and record.us else None


def name_of(record: Record) -> str:
    """The shape, and how it was summed where that is not the usual."""
    problem = record.problem or {}
    return f"{problem['m']} x {problem['n']} x {problem['k']}"


def table(past: Archive) -> str:
    """On each machine every case of the newest measurement of each bar, and what the bars say."""
    every = machines_of(past.where(experiment="gemm_bars", on="gpu").records)
    parts = [_of_machine(measured) for measured in every.values()]
    return "\n\n".join(parts) or "No records yet: `lab run gemm_bars --on gpu` makes them."


def _of_machine(measured: Sequence[Record]) -> str:
    rows, sentences, sources = [], [], set()
    for name, group in by_bar(measured).items():
        newest = list({str(record.problem): record for record in group}.values())
        for record in newest:
            other = best_peer(measured, record)
            over = ratio(measured, record)
            words = schedule_words(record.schedule or {})
            times = [figure(record.us), figure(other.us if other else None)]
            doubt = f" ({said})" if (said := note(record)) else ""
            case = [name, name_of(record), record.clock or "-", f"`{record.kernel}` {words}{doubt}"]
            rows.append([*case, *times, f"{over:.3f}" if over else "-"])
            sources.add(record.source)
        sentences.append(judge(name, newest, measured).sentence)
    headings = ["bar", "m x n x k", "clock", "chosen", "ours, us", "the peer, us", "its time over ours"]
    said = "\n".join(f"- {sentence}" for sentence in sentences)
    return f"{said}\n\n{markdown.table(headings, rows)}\n\n{markdown.measured_on(sources)}"
