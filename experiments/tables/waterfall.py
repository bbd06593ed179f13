"""Where a step of a model spends its time: its bytes by part, what is predicted of each, and the whole as timed."""

from collections.abc import Iterator
from dataclasses import replace

from experiments.chart import Bar, Bars
from experiments.lookup import question_of
from lab.inference.step import Part, parts_of
from lab.problems import MODELS, Attention, Linear, Model
from lab.record import Archive
from sim.machine import MACHINES

NAME, CONTEXT = "llama-3-8b", 2048
STEPS = {replace(MODELS[NAME], batch=1, context=CONTEXT, weights=form): form for form in ("bf16", "fp8", "int4_g128")}
REST = "all else"  # norms, RoPE, SwiGLU, the embedding's row, sampling


def pictures(past: Archive) -> dict[str, Bars]:
    """The newest timed step of one sequence in each format; no picture where none was timed."""
    timed = {}
    for record in past.where(experiment="step_bars", on="gpu", kernel=None).records:
        if record.us and record.problem and record.metrics.get("launches") == "overlapping":
            timed[question_of(record)] = record
    newest = {model: timed[model] for model in STEPS if model in timed}
    if not newest:
        return {}
    chip = MACHINES[next(iter(newest.values())).machine]
    bars = tuple(bar for model, record in newest.items() for bar in _bars(model, record.machine, record.us or 0.0))
    title = f"One decode step of {NAME}, {CONTEXT:,} tokens of context, on the {chip.title}"
    return {"step_waterfall": Bars(title, "microseconds", bars)}


def _bars(model: Model, machine: str, us: float) -> Iterator[Bar]:
    """A step's bytes at the data sheet's rate, its prediction, and its time."""
    form, chip = STEPS[model], MACHINES[machine]
    parts = parts_of(model, [(1, model.context)], chip)
    floors = [part.times * part.problem.bytes["total"] / chip.hbm_bandwidth * 1e6 for part in parts]
    predicted = [part.times * (part.predicted_us("chain") or 0.0) for part in parts]
    for label, each in (("bytes", floors), ("predicted", predicted)):
        yield Bar(f"{form}, {label}", tuple(_summed(parts, each)))
    yield Bar(f"{form}, measured", (("measured", us),))


def _summed(parts: list[Part], us: list[float]) -> Iterator[tuple[str, float]]:
    """Matrices and attention in the order of a layer, then what all other parts take."""
    rest = 0.0
    for part, each in zip(parts, us, strict=True):
        if isinstance(part.problem, Linear | Attention):
            yield part.name, each
        else:
            rest += each
    yield REST, rest
