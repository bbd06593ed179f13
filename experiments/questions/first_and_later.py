"""What a request waits for: its first token, which its whole prompt makes, and later ones, which its cache slows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from experiments.chart import Chart
from experiments.lookup import drawn
from experiments.markdown import three_columns
from experiments.questions.steps import step_of, step_row, stepped, with_times
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
from lab.problems import model_named
from lab.problems.model import DECODE, PREFILL
from lab.record import Archive, Record
from sim.errors import InputError
from sim.formats import format_named
from sim.machine import machine

QUESTION = "How long does a request wait for its first token, and how much slower do later ones come as it grows?"
PHASES = {PREFILL: "first token", DECODE: "a later token"}


@dataclass(frozen=True)
class Options:
    """Steps of a preset, alone on its card, at `shortest` tokens, four times as many and so on up to `longest`."""

    model: str = "llama-3-8b"
    weights: str = "bf16"
    shortest: int = 128
    longest: int = 32768
    rounds: int = 5
    seconds: int = 300

    def __post_init__(self) -> None:
        model_named(self.model)
        format_named(self.weights)
        if not 1 <= self.shortest <= self.longest or min(self.rounds, self.seconds) < 1:
            given = f"{self.shortest}, {self.longest}, {self.rounds}, {self.seconds}"
            raise InputError(f"shortest, longest, rounds and seconds are at least 1, in order; got {given}")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """The prefill of every length and a decode step at it."""
    o, lengths = options, []
    while (at := o.shortest * 4 ** len(lengths)) <= o.longest:
        lengths.append(at)
    model = replace(model_named(o.model), weights=o.weights)
    steps = [replace(model, phase=phase, context=length) for length in lengths for phase in PHASES]
    yield from stepped(backend, "first_and_later", steps, o.rounds, o.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Of each length both times, and how much of a decode step's bytes is cache."""
    for record, found in with_times(records, past):
        step = step_of(record)
        row = step_row(f"{PHASES[step.phase]}, {step.context:,} tokens", record, found)
        yield row
        if step.phase == DECODE:
            share = step.bytes["kv"] / step.streamed_bytes
            yield Row(row.case, "KV cache, share of bytes", share, None, None, percent=True)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """How the times grow from the shortest to the longest."""
    said = []
    for phase, name in PHASES.items():
        every = _of(phase, records, past)
        timed = [(step_of(record).context, found.us) for record, found in every if found and found.us]
        measured = len(timed) > 1
        times = timed if measured else [(step_of(r).context, r.predicted_us) for r, _ in every if r.predicted_us]
        if len(times) > 1:
            (short, first), (long, last) = times[0], times[-1]
            how = "measured" if measured else "predicted"
            said.append(
                f"{name} takes {last / first:.3g} times as long at {long / short:,.0f} times the tokens ({how})"
            )
    sentence = "; ".join(said) or "one length tells nothing of growth"
    return Verdict(None, f"{sentence[0].upper()}{sentence[1:]}.")


def _of(phase: str, records: Sequence[Record], past: Archive) -> list[tuple[Record, Record | None]]:
    return [(record, found) for record, found in with_times(records, past) if step_of(record).phase == phase]


def table(past: Archive) -> str:
    """The newest steps that were predicted, with the times of a card where there are some."""
    records = past.newest_run(experiment="first_and_later", on="sim")
    if not records:
        return "No records yet: `lab run first_and_later --record` makes them."
    return three_columns(list(rows(records, past)), verdict(records, past).sentence)


def pictures(past: Archive) -> dict[str, Chart]:
    """Both times over the tokens."""
    records = past.newest_run(experiment="first_and_later", on="sim")
    if not records:
        return {}
    series = []
    for phase, name in PHASES.items():
        pairs = _of(phase, records, past)
        predicted = ((step_of(r).context, r.predicted_us / 1e3, r) for r, _ in pairs if r.predicted_us)
        timed = ((step_of(r).context, found.us / 1e3, found) for r, found in pairs if found and found.us)
        series += [*drawn(name, predicted, "predicted"), *drawn(name, timed)]
    title = f"A request alone on the {machine(records[0].machine).title}"
    return {"first-and-later": Chart(title, "tokens of prompt or context", "ms", tuple(series))}
