"""A whole step for more and more sequences: weights are shared, the KV cache is not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from experiments.chart import Chart
from experiments.lookup import drawn
from experiments.markdown import three_columns
from experiments.questions.steps import step_of, step_row, stepped, with_times
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
from lab.problems import model_named
from lab.record import Archive, Record
from sim.errors import InputError
from sim.formats import format_named
from sim.machine import machine

QUESTION = "What does a token cost when whole steps decode more and more sequences together?"


@dataclass(frozen=True)
class Options:
    """Decode steps of a preset for 1, 2, 4, ... up to `most` sequences of `context` tokens, as many as have room."""

    model: str = "llama-3-8b"
    weights: str = "bf16"
    context: int = 2048
    most: int = 512
    rounds: int = 10
    seconds: int = 300

    def __post_init__(self) -> None:
        model_named(self.model)
        format_named(self.weights)
        if min(self.context, self.most, self.rounds, self.seconds) < 1:
            given = f"{self.context}, {self.most}, {self.rounds}, {self.seconds}"
            raise InputError(f"context, most, rounds and seconds are at least 1; got {given}")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Each batch that has room on the chip, the smallest first."""
    step = replace(model_named(options.model), weights=options.weights, context=options.context)
    batches = takewhile(lambda batch: batch <= options.most, (2**i for i in range(31)))
    steps = [replace(step, batch=batch) for batch in batches]
    yield from stepped(backend, "step_batching", steps, options.rounds, options.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Of each batch the time of a step, what it makes a second, and how much of its bytes is cache."""
    for record, found in with_times(records, past):
        model = step_of(record)
        row = step_row(f"batch {model.batch:,}", record, found)
        yield row
        rates = (model.batch / us * 1e6 if us else None for us in (row.theory, row.simulated, row.measured))
        yield Row(row.case, "tokens/s", *rates, row.source)
        yield Row(
            row.case, "KV cache, share of bytes", model.bytes["kv"] / model.streamed_bytes, None, None, percent=True
        )


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """How much more the largest batch makes than the smallest, and from where on the cache is most of the bytes."""
    pairs = with_times(records, past)
    wall = next((m.batch for m in (step_of(r) for r, _ in pairs) if 2 * m.bytes["kv"] > m.streamed_bytes), None)
    first, last = (step_of(pairs[i][0]).batch for i in (0, -1))
    said = []
    for name, us in (
        ("predicted", [record.predicted_us for record, _ in pairs]),
        ("measured", [found.us if found else None for _, found in pairs]),
    ):
        if us[0] and us[-1]:
            said.append(f"{last / us[-1] * us[0] / first:.1f} times as many {name}")
    cache = f"; from batch {wall} on the cache is most of the bytes" if wall else ""
    return Verdict(None, f"Batch {last} makes {', '.join(said)} tokens a second as batch {first}{cache}.")


def table(past: Archive) -> str:
    """The newest steps that were predicted, with the times of a card where there are some."""
    records = past.newest_run(experiment="step_batching", on="sim")
    if not records:
        return "No records yet: `lab run step_batching --record` makes them."
    return three_columns(list(rows(records, past)), verdict(records, past).sentence)


def pictures(past: Archive) -> dict[str, Chart]:
    """Tokens a second over the batch."""
    records = past.newest_run(experiment="step_batching", on="sim")
    if not records:
        return {}
    pairs = with_times(records, past)
    batches = {id(r): step_of(r).batch for r, _ in pairs}
    predicted = ((batches[id(r)], batches[id(r)] / r.predicted_us * 1e6, r) for r, _ in pairs if r.predicted_us)
    timed = ((batches[id(r)], batches[id(r)] / found.us * 1e6, found) for r, found in pairs if found and found.us)
    series = [*drawn("predicted", predicted, "predicted"), *drawn("measured", timed)]
    chip = machine(records[0].machine)
    title = f"Decode steps of {step_of(records[0]).context:,} tokens of context on the {chip.title}"
    return {"step-batching": Chart(title, "sequences", "tokens a second", tuple(series))}
