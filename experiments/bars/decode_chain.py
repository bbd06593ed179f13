"""Decode is a chain of layers: what is lost between them, and what launches that overlap win back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from msgspec import structs

from experiments.lookup import is_peer, layer_of, machines_of, note, read_rate, stale
from experiments.markdown import three_columns
from experiments.rows import Row, Verdict, floor_of, timed_by, untimed
from experiments.running.backends import Backend
from experiments.running.formats import chosen_job, in_format
from lab.choice import best_guesses, legal_candidates, schedule_words
from lab.kernel import schedule_fields
from lab.problems import Linear
from lab.record import Archive, Record
from sim.errors import InputError
from sim.machine import Machine, machine

QUESTION = "How close does a chain of dependent layers at batch 1 come to reading all its weights at full rate?"

# By format, times the bytes at the rate of a plain read of a large array (experiment ceilings).
BARS = {"bf16": 1.04, "fp8": 1.06, "int4_g128": 1.08}


@dataclass(frozen=True)
class Options:
    """`layers` square layers of width `d` for m tokens, in bf16, fp8, int4; `d` 0 takes 4096 for bf16, else 8192.

    On a GPU the best of the first `tried` schedules of each kernel whose launches can overlap compete, beside what the
    lab chooses.
    """

    d: int = 0
    m: int = 1
    layers: int = 8
    tried: int = 48
    rounds: int = 15
    seconds: int = 120

    def __post_init__(self) -> None:
        if min(self.d, self.tried) < 0 or min(self.m, self.layers, self.rounds, self.seconds) < 1:
            given = f"{self.d}, {self.tried}, {self.m}, {self.layers}, {self.rounds}, {self.seconds}"
            raise InputError(f"d and tried are at least 0, m, layers, rounds and seconds at least 1; got {given}")

    @property
    def problems(self) -> list[Linear]:
        widths = {name: self.d or (4096 if name == "bf16" else 8192) for name in BARS}
        return [in_format(name, Linear(self.m, d, d)) for name, d in widths.items()]


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """The chosen kernel of each format, all layers in one graph."""
    facts = {"layers": options.layers}
    how = {"rounds": options.rounds, "experiment": "decode_chain"}
    jobs = []
    for problem in options.problems:
        chosen = chosen_job(problem, backend.machine, facts, chain=True, **how)
        jobs.append(chosen)
        if backend.on == "gpu":
            others = _overlapping(problem, backend.machine, options.tried)
            jobs += [structs.replace(chosen, kernel=name, schedules=words, peers=False) for name, words in others]
    yield from backend.chained(jobs, options.seconds)


def _overlapping(problem: Linear, target: Machine, most: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Kernels of decode whose launches can overlap, each with its first schedules as words.

    Those that may let the launch behind begin at another time do it at either.
    """
    for guess in best_guesses(problem, target):
        if most and guess.kernel.family == "gemv" and guess.launches[0].dependent:
            schedules = [*islice(legal_candidates(guess.kernel, problem, target), most)]
            schedules += [replace(s, late=1 - s.late) for s in schedules if hasattr(s, "late")]
            yield guess.kernel.name, tuple(schedule_words(schedule_fields(schedule)) for schedule in schedules)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Each chain's fastest ways: all its layers' time by floor, prediction and measurement."""
    for record in fastest(_measured(records, past)):
        layers = int(record.metrics["layers"] or 0)
        problem = layer_of(record)
        floor = layers * floor_of(record)
        case = f"{problem.weights}, {layers} layers of {problem.n:,} x {problem.k:,}, m = {problem.m}"
        predicted = layers * record.predicted_us if record.predicted_us else None
        what = (
            record.kernel if is_peer(record) else f"{record.kernel}, {record.metrics.get('launches', 'plain')} launches"
        )
        yield timed_by(Row(case, f"{what}, us", floor, predicted, None, note=note(record)), record)


def fastest(records: Sequence[Record]) -> list[Record]:
    """Of each chain the fastest overlapping launches, the fastest plain ones and each peer; all that are untimed."""
    best: dict[str, Record] = {}
    for record in records:
        way = record.metrics.get("launches") or record.kernel
        key = f"{record.problem} {way if record.us else record.kernel}"
        if key not in best or (record.us or 0.0) < (best[key].us or 0.0):
            best[key] = record
    return list(best.values())


def _measured(records: Sequence[Record], past: Archive) -> Sequence[Record]:
    """The records where one has a time, else those that such a GPU gave last."""
    here = records[0].machine if records else ""
    timed = past.where(experiment="decode_chain", on="gpu", machine=here).records
    if any(record.us for record in records) or not timed:
        return records
    return [record for record in timed if record.commit == timed[-1].commit]


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """The chains with launches that overlap, against their bytes at the read rate."""
    chains = [
        r
        for r in fastest(_measured(records, past))
        if r.us and r.metrics.get("launches") == "dependent" and not stale(r)
    ]
    if not chains:
        return untimed(records, f"{len(records)} chains were predicted, none was timed.")
    title = machine(chains[0].machine).title
    rate, _ = read_rate(past, chains[0].machine)
    if not rate:
        return Verdict(False, f"How fast the {title} reads has not been measured here (lab run ceilings --on gpu).")
    judged = {layer_of(r).weights: times_the_read(r, rate) for r in chains}
    sentences = [f"{name} takes {times:.3f} (bar {BARS[name]})" for name, times in judged.items()]
    within = all(times <= BARS[name] for name, times in judged.items())
    return Verdict(within, f"Times its bytes at {rate / 1e12:.2f} TB/s, {'; '.join(sentences)}.")


def table(past: Archive) -> str:
    """The newest chains on each machine, and what the bars say."""
    timed = machines_of(past.where(experiment="decode_chain", on="gpu").records)
    newest = [[record for record in found if record.commit == found[-1].commit] for found in timed.values()]
    parts = [three_columns(list(rows(found, past)), verdict(found, past).sentence) for found in newest]
    return "\n\n".join(parts) or "No records yet: `lab run decode_chain --on gpu` makes them."


def times_the_read(record: Record, rate: float) -> float:
    """A chain's time over that of its weights at a rate in bytes per second."""
    problem = layer_of(record)
    nbytes = int(record.metrics["layers"] or 0) * problem.bytes["weights"]
    return (record.us or 0.0) / (nbytes / rate * 1e6)
