"""A whole step for more and more sequences: weights are shared, the KV cache is not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from experiments.chart import Chart, Series
from experiments.lookup import question_of
from experiments.markdown import three_columns
from experiments.rows import Row, Verdict, floor_of, timed_by
from experiments.running.backends import Backend
from experiments.running.jobs import StepJob
from lab.problems import Model, model_named
from lab.record import Archive, Record
from sim.errors import InputError
from sim.formats import format_named
from sim.machine import machine

QUESTION = "What does a token cost when whole steps decode more and more sequences together?"

ROOM = 0.9  # of a card's memory, for weights and cache


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
    fitting = [step for step in steps if step.bytes["total"] <= ROOM * backend.machine.hbm_bytes]
    if not fitting:
        raise InputError(f"{options.model} in {options.weights} has no room on the {backend.machine.title}")
    how = {"experiment": "step_batching", "peers": False, "rounds": options.rounds}
    yield from backend.stepped([StepJob(problem=step.as_dict(), **how) for step in fitting], options.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Of each batch the time of a step, what it makes a second, and how much of its bytes is cache."""
    for record, found in _pairs(records, past):
        model = _asked(record)
        row = Row(f"batch {model.batch:,}", "us a step", floor_of(record), record.predicted_us, None)
        row = timed_by(row, found) if found else row
        yield row
        rates = (model.batch / us * 1e6 if us else None for us in (row.theory, row.simulated, row.measured))
        yield Row(row.case, "tokens/s", *rates, row.source)
        yield Row(
            row.case, "KV cache, share of bytes", model.bytes["kv"] / model.streamed_bytes, None, None, percent=True
        )


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """How much more the largest batch makes than the smallest, and from where on the cache is most of the bytes."""
    pairs = _pairs(records, past)
    wall = next((m.batch for m in (_asked(r) for r, _ in pairs) if 2 * m.bytes["kv"] > m.streamed_bytes), None)
    first, last = (_asked(pairs[i][0]).batch for i in (0, -1))
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
    pairs = _pairs(records, past)
    predicted = [(_asked(r).batch, _asked(r).batch / r.predicted_us * 1e6) for r, _ in pairs if r.predicted_us]
    timed = [(_asked(r).batch, _asked(r).batch / found.us * 1e6) for r, found in pairs if found and found.us]
    series = [Series("predicted", tuple(predicted), "predicted")]
    series += [Series("measured", tuple(timed))] if timed else []
    chip = machine(records[0].machine)
    title = f"Decode steps of {_asked(records[0]).context:,} tokens of context on the {chip.title}"
    return {"step-batching": Chart(title, "sequences", "tokens a second", tuple(series))}


def _pairs(records: Sequence[Record], past: Archive) -> list[tuple[Record, Record | None]]:
    """Each batch's record, and the newest time of a step like it on such a machine."""
    timed = [
        r for r in [*past.where(on="gpu").records, *records] if r.us and r.metrics.get("launches") == "overlapping"
    ]
    newest = {(r.machine, str(r.problem)): r for r in timed if r.problem and r.problem.get("kind") == Model.kind}
    first = {str(r.problem): r for r in records if r.metrics.get("launches") == "overlapping"}
    return [(record, newest.get((record.machine, problem))) for problem, record in first.items()]


def _asked(record: Record) -> Model:
    model = question_of(record)
    assert isinstance(model, Model)
    return model
