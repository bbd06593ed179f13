"""The article's opening scene with a whole model: prefill fills the tensor cores, decode the memory bus."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from experiments.markdown import three_columns
from experiments.questions.steps import step_of, step_row, stepped, with_times
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
from lab.problems import Model, model_named
from lab.problems.model import DECODE, PREFILL
from lab.record import Archive, Record
from sim.errors import InputError
from sim.formats import format_named
from sim.machine import machine

QUESTION = "Which part of the chip does a whole model use in prefill, and which in decode?"


@dataclass(frozen=True)
class Options:
    """A preset's prefill of `context` tokens, and a step that decodes one more."""

    model: str = "llama-3-8b"
    weights: str = "bf16"
    context: int = 2048
    rounds: int = 10
    seconds: int = 120

    def __post_init__(self) -> None:
        model_named(self.model)
        format_named(self.weights)
        if min(self.context, self.rounds, self.seconds) < 1:
            raise InputError(
                f"context, rounds and seconds are at least 1; got {self.context}, {self.rounds}, {self.seconds}"
            )


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """The step of each phase."""
    model = replace(model_named(options.model), weights=options.weights, context=options.context)
    steps = [replace(model, phase=phase) for phase in (PREFILL, DECODE)]
    yield from stepped(backend, "step_machines", steps, options.rounds, options.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Each phase's time, and the share that it has of the tensor cores' peak and of HBM's rate at the data sheet."""
    for record, found in with_times(records, past):
        row = step_row(f"{step_of(record).phase}, {step_of(record).context:,} tokens", record, found)
        yield row
        for quantity, alone_us in bills_us(record).items():
            shares = (alone_us / us if us else None for us in (row.theory, row.simulated, row.measured))
            yield Row(row.case, quantity, *shares, row.source, percent=True)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """Whether each phase uses more of its own machine than of the other's."""
    said, passed = [], True
    measured = True
    for record, found in with_times(records, past):
        us = (found and found.us) or record.predicted_us or 1.0
        measured &= bool(found)
        tensor, hbm = (alone / us for alone in bills_us(record).values())
        passed &= (tensor > hbm) == (step_of(record).phase == PREFILL)
        said.append(f"{step_of(record).phase} uses {tensor:.1%} of the tensor cores' peak and {hbm:.1%} of HBM's rate")
    sentence = "; ".join(said)
    how = "measured" if measured else "predicted"
    return Verdict(passed if measured else None, f"{sentence[:1].upper()}{sentence[1:]} ({how}).")


def bills_us(record: Record) -> dict[str, float]:
    """Microseconds that a step's operations take at the tensor cores' peak, and its bytes at HBM's rate."""
    step: Model = step_of(record)
    chip = machine(record.machine)
    return {
        "tensor cores, of the peak": step.flops / chip.peak(step.unit) * 1e6,
        "HBM, of its rate": step.streamed_bytes / chip.hbm_bandwidth * 1e6,
    }


def table(past: Archive) -> str:
    """The newest steps that were predicted, with the times of a card where there are some."""
    records = past.newest_run(experiment="step_machines", on="sim")
    if not records:
        return "No records yet: `lab run step_machines --record` makes them."
    return three_columns(list(rows(records, past)), verdict(records, past).sentence)
