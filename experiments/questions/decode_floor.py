"""The floor of a decode step: all weights cross the memory bus for every token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from experiments.lookup import cases, comparable, layer_of, measured, note, question_of, read_rate
from experiments.markdown import three_columns
from experiments.questions.steps import is_overlapping_step, step_of
from experiments.rows import Row, Verdict, floor_of
from experiments.running.backends import Backend
from lab.problems import Linear, Model, model_named
from lab.record import Archive, Record
from sim.machine import machine

QUESTION = "How many tokens a second can a model decode at most, one sequence at a time?"
KERNEL = "gemv_vectorized"
CLOCK = "graph"
CHECK_S = 0.3


@dataclass(frozen=True)
class Options:
    """A known model and the format of its weights."""

    model: str = "llama-2-13b"
    weights: str = "bf16"


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """The bill of all weights, then each different linear layer of the model through the GEMV kernel."""
    model = replace(model_named(options.model), weights=options.weights, context=1)
    weights = model.bytes["weights"]
    yield backend.closed_form(
        {
            "model": options.model,
            "weights_bytes": weights,
            "streamed_bytes": weights - model.lookup_bytes,
            "bandwidth_bytes_per_s": backend.machine.hbm_bandwidth,
            "floor_us": weights / backend.machine.hbm_bandwidth * 1e6,
        },
        problem=model,
    )
    if options.weights == "bf16":  # the format that the kernel reads
        yield from backend.kernels([(KERNEL, Linear(1, n, k)) for n, k in _layers(model)], budget_s=CHECK_S)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Floors at the data sheet's rate and at the rate that this kind of card was measured to read at."""
    bill = records[0].metrics
    case = str(bill["model"])
    rate, source = read_rate(past, records[0].machine)
    yield Row(case, "weights, GB", _weights(records) / 1e9, None, None)
    yield Row(case, "read rate, TB/s", _rate(records) / 1e12, None, rate / 1e12 if rate else None, source)
    for name, size in (("all weights", "weights_bytes"), ("all but the embedding table", "streamed_bytes")):
        nbytes = float(bill[size] or 0)
        floors = [nbytes / _rate(records) * 1e3, nbytes / rate * 1e3 if rate else None]
        yield Row(case, f"floor of a step, {name}, ms", floors[0], None, floors[1], source)
    yield Row(case, "tokens/s", *_tokens_per_second(records, past), source=source)
    layers = _sums(records, past)
    if layers:
        every, timed = cases(records), _timed(records, past)
        doubts = {note(record, found) for record, found in zip(every, timed or [None] * len(every), strict=True)}
        source = timed[0].source if timed else ""
        yield Row(case, f"all linear layers by {KERNEL}, ms", *layers, source, ", ".join(sorted(filter(None, doubts))))
    for context, step in _whole_steps(records, past).items():
        times = (us / 1e3 if us else None for us in (floor_of(step), step.predicted_us, step.us))
        yield Row(case, f"a whole step, {context:,} tokens of context, ms", *times, step.source)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """The floor and the rate of tokens it allows."""
    weights = _weights(records)
    rate, source = read_rate(past, records[0].machine)
    at_most, _, really = _tokens_per_second(records, past)
    layers = _sums(records, past)
    holds = not layers or layers[1] * 1.0001 >= layers[0]
    sheet = (
        f"The {weights / 1e9:.1f} GB of {records[0].metrics['model']} take {weights / _rate(records) * 1e3:.1f} ms "
        f"at the data sheet's {_rate(records) / 1e12:.3g} TB/s, so at most {at_most:.0f} tokens/s"
    )
    card = (
        f"; at the {rate / 1e12:.3g} TB/s read on {source} {weights / rate * 1e3:.1f} ms and {really:.0f} tokens/s."
        if rate
        else "; what this card really reads has not been measured here (lab run ceilings --on gpu)."
    )
    return Verdict(holds, sheet + card)


def _whole_steps(records: Sequence[Record], past: Archive) -> dict[int, Record]:
    """By context, the newest step of one sequence of this model on this machine, its launches overlapping."""
    asked = question_of(records[0])
    assert isinstance(asked, Model)
    found = {}
    for record in past.where(on="gpu", machine=records[0].machine).records:
        if not record.us or not is_overlapping_step(record):
            continue
        model = step_of(record)
        if replace(model, context=asked.context) == asked:
            found[model.context] = record
    return dict(sorted(found.items()))


def table(past: Archive) -> str:
    """The newest run of each model."""
    runs: dict[str, list[Record]] = {}
    for record in past.where(experiment="decode_floor", on="sim").records:
        runs.setdefault(record.run, []).append(record)
    newest = {run[0].metrics["model"]: run for run in runs.values()}
    if not newest:
        return "No records yet: `lab run decode_floor --record` makes them."
    every = [row for run in newest.values() for row in rows(run, past)]
    return three_columns(every, " ".join(verdict(run, past).sentence for run in newest.values()))


def _layers(model: Model) -> dict[tuple[int, int], int]:
    """How often each [outputs, inputs] occurs in a step, the head included."""
    found: dict[tuple[int, int], int] = {(model.vocab, model.d): 1}
    for shape in model.layer_matrices.values():
        found[shape] = found.get(shape, 0) + model.layers
    return found


def _weights(records: Sequence[Record]) -> float:
    return float(records[0].metrics["weights_bytes"] or 0)


def _rate(records: Sequence[Record]) -> float:
    return float(records[0].metrics["bandwidth_bytes_per_s"] or 0)


def _tokens_per_second(records: Sequence[Record], past: Archive) -> tuple[float, None, float | None]:
    rate, _ = read_rate(past, records[0].machine)
    return _rate(records) / _weights(records), None, rate / _weights(records) if rate else None


def _sums(records: Sequence[Record], past: Archive) -> tuple[float, float, float | None] | None:
    """Milliseconds of all linear layers: floor, predicted, measured (None where one was not)."""
    model = question_of(records[0])
    assert isinstance(model, Model)
    counts = _layers(model)
    chip = machine(records[0].machine)
    floor = predicted = 0.0
    for record in cases(records):
        problem = layer_of(record)
        times = counts[(problem.n, problem.k)]
        floor += times * problem.bytes["total"] / chip.hbm_bandwidth * 1e3
        predicted += times * (record.predicted_us or 0.0) / 1e3
    timed = [(layer_of(record), record.us or 0.0) for record in _timed(records, past)]
    measured_ms = sum(counts[(problem.n, problem.k)] * us / 1e3 for problem, us in timed)
    return (floor, predicted, measured_ms or None) if predicted else None


def _timed(records: Sequence[Record], past: Archive) -> list[Record]:
    """What was measured of each linear layer; nothing unless all were, alike."""
    layers = cases(records)
    found = [timed for record in layers if (timed := measured(past, record, CLOCK))]
    return found if len(found) == len(layers) and comparable(found) else []
