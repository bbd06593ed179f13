"""A batch that others join as soon as one ends, against batches that wait for their longest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.markdown import three_columns
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
from experiments.served import cases, figure, job, lengths, newest, served_rows
from lab.problems.model import model_named
from lab.record import Archive, Record
from lab.serving.workload import Workload
from sim.errors import InputError

QUESTION = "What does it gain to admit a request as soon as another has ended?"

SHOWN = ("output_throughput", "mean_rows", "median_ttft_ms", "p99_ttft_ms", "mean_itl_ms", "steps")


@dataclass(frozen=True)
class Options:
    """Conversations (Azure's lengths), all there at the start, in batches of up to `rows` of a model."""

    model: str = "llama-3-8b"
    requests: int = 256
    rows: int = 32
    seconds: int = 120

    def __post_init__(self) -> None:
        model_named(self.model)
        if not 1 <= self.rows <= 256 or self.requests < 1:
            raise InputError(f"rows are from 1 to 256, requests at least 1; got {self.rows}, {self.requests}")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """The same requests in static and in continuous batches."""
    asked = lengths(Workload("azure-conv", options.requests, max_length=8192))
    model = model_named(options.model)
    yield from backend.served(
        [
            job(
                "continuous_batching",
                f"{name} batches of {options.rows}",
                model,
                asked,
                policy={"max_rows": options.rows, "continuous": name == "continuous"},
                facts={"continuous": name == "continuous"},
            )
            for name in ("static", "continuous")
        ],
        options.seconds,
    )


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (all is of one run)
    """Throughput, sequences of a step and times of both."""
    return served_rows(records, SHOWN)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """How many times as many tokens a second."""
    found = {bool(case.either.metrics.get("continuous")): case.either for case in cases(records).values()}
    ours, others = (figure(found.get(which), "output_throughput") for which in (True, False))
    if not ours or not others:
        return Verdict(None, "There are no two loops to compare.")
    source = "measured" if found[True].on == found[False].on == "gpu" else "predicted"
    return Verdict(
        ours > others if source == "measured" else None,
        f"Continuous batches give {ours / others:.2f} times as many tokens a second as static ones ({source}).",
    )


def table(past: Archive) -> str:
    """The newest run."""
    found = newest(past, "continuous_batching")
    if not found:
        return "No records yet: `lab run continuous_batching --record` makes them."
    return three_columns(list(rows(found, past)), verdict(found, past).sentence)
