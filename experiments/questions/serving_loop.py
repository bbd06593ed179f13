"""A loop under load on both chips, and how much of its error is the kernels', the host's and the loop's own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.chart import Chart, Mark, Series
from experiments.markdown import three_columns
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
from experiments.served import cases, figure, job, lengths, newest, served_rows, words
from lab.problems.model import model_named
from lab.record import Archive, Record
from lab.serving.workload import DATASETS, Workload
from sim.errors import InputError

QUESTION = "Can what users of a loop will feel be read before there is a GPU?"

SHOWN = (
    "output_throughput",
    "median_ttft_ms",
    "p99_ttft_ms",
    "mean_itl_ms",
    "p99_itl_ms",
    "median_max_itl_ms",
    "max_itl_ms",
    "idle_fraction",
)
LINKED = ("median_ttft_ms", "p99_ttft_ms", "mean_itl_ms", "p99_itl_ms")
PERCENTILES = (5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0)
SPREADS = {"serving_ttft": ("ttft", "Time to the first token"), "serving_itl": ("itl", "Gaps between tokens")}
MARKS: tuple[Mark, ...] = ("predicted", "measured")
LINKS = {"steps_": "steps as measured", "host_": "and the host as measured"}


@dataclass(frozen=True)
class Options:
    """`requests` of a dataset for a model, so many a second as each of `rates` says, `runs` times on a GPU."""

    model: str = "llama-3-8b"
    dataset: str = "azure-conv"
    requests: int = 100
    rates: str = "8,16,24"
    runs: int = 1
    seconds: int = 200

    def __post_init__(self) -> None:
        model_named(self.model)
        if self.dataset not in DATASETS:
            raise InputError(f"unknown dataset {self.dataset!r}; datasets: {', '.join(DATASETS)}")
        try:
            rates = [float(rate) for rate in self.rates.split(",")]
        except ValueError:
            rates = [0.0]
        if not all(rate > 0 for rate in rates) or min(self.requests, self.runs) < 1:
            raise InputError(f"rates are numbers above 0, requests and runs at least 1; got {self}")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Each rate, as often as asked on a GPU, once by predictions."""
    model, found = model_named(options.model), []
    for rate in map(float, options.rates.split(",")):
        asked = lengths(Workload(options.dataset, options.requests, rate))
        name = f"{options.dataset}, {rate:g} a second"
        facts = {"requests_per_s": rate}
        one = job("serving_loop", name, model, asked, attribute=True, percentiles=PERCENTILES, facts=facts)
        found += [one] * (options.runs if backend.on == "gpu" else 1)
    yield from backend.served(found, options.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (all is of one run)
    """Each figure predicted and measured, how far runs lie apart, and what it is when links are taken as measured."""
    yield from served_rows(records, SHOWN)
    for name, case in cases(records).items():
        found = [r for r in records if r.on == "gpu" and r.metrics.get("case") == name]
        for metric in LINKED:
            measured = figure(case.measured, metric)
            for prefix, what in LINKS.items():
                told = figure(case.predicted, prefix + metric)
                if told is not None and case.measured:
                    yield Row(name, f"{words(metric)}, {what}", None, told, measured, source=case.measured.source)
            every = [value for r in found if (value := figure(r, metric)) is not None]
            if len(every) > 1 and measured and case.measured:
                apart = (max(every) - min(every)) / measured
                what = f"{words(metric)}, between runs"
                yield Row(name, what, None, None, apart, source=case.measured.source, percent=True)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """How far the predictions were off."""
    said = []
    for name, case in cases(records).items():
        pairs = [(words(m), figure(case.predicted, m), figure(case.measured, m)) for m in LINKED]
        off = [f"{what} {found / told - 1:+.0%}" for what, told, found in pairs if told and found]
        if off:
            said.append(f"{name}: {', '.join(off)}")
    if not said:
        return Verdict(None, f"{len(records)} loops were predicted, none was measured.")
    return Verdict(None, f"Measured over predicted, {'; '.join(said)}.")


def pictures(past: Archive) -> dict[str, Chart]:
    """How many first tokens, and how many gaps, are no longer than so much: predicted and measured, at each rate."""
    found, charts = cases(newest(past, "serving_loop", "requests_per_s")), {}
    for file, (spread, title) in SPREADS.items():
        series = []
        for case in found.values():
            rate = figure(case.either, "requests_per_s")
            for mark in MARKS:
                values = [(figure(getattr(case, mark), f"p{p:g}_{spread}_ms"), p) for p in PERCENTILES]
                if points := [(ms, p) for ms, p in values if ms]:
                    series.append(Series(f"{rate:g} requests a second", points, mark))
        if series:
            charts[file] = Chart(
                f"{title} of a loop under load", "ms", "% of all, at most", tuple(series), logarithmic="x"
            )
    return charts


def table(past: Archive) -> str:
    """Each rate's newest run."""
    found = newest(past, "serving_loop", "requests_per_s")
    if not found:
        return "No records yet: `lab run serving_loop --record` makes them."
    return three_columns(list(rows(found, past)), verdict(found, past).sentence)
