"""Batching walks decode up the roofline: the same weights, in every format, against more and more tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from experiments.chart import Chart
from experiments.lookup import cases, comparable, drawn, layer_of, measured
from experiments.rows import Row, Verdict, time_row
from experiments.running.backends import Backend
from experiments.running.formats import chosen_job, formats_of, in_format
from lab.explain import Explanation, explain
from lab.problems import Linear
from lab.record import Archive, Record
from sim.errors import InputError
from sim.machine import machine

QUESTION = "How many sequences must be decoded together before decode is compute-bound?"

CLOCK = "graph"  # a step of decode finds its weights in HBM and waits for no host
TERA = 1e12
SPREAD = 2.0  # how far a measured crossing may be from the predicted one


@dataclass(frozen=True)
class Options:
    """A square layer of width d, decoded for 1, 2, 4, ... up to `most` sequences, in `formats` joined by +."""

    d: int = 4096
    most: int = 1024
    formats: str = "bf16+fp8+fp8_fp8+int4_g128"
    rounds: int = 20
    seconds: int = 400

    def __post_init__(self) -> None:
        formats_of(self.formats)
        if min(self.most, self.rounds, self.seconds) < 1:
            given = f"{self.most}, {self.rounds}, {self.seconds}"
            raise InputError(f"batching needs most of at least 1, rounds and seconds too; got {given}")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """What the lab chooses for every format and batch, the largest first: smaller ones are its first rows."""
    batches = list(takewhile(lambda m: m <= options.most, (2**i for i in range(31))))
    jobs = [
        chosen_job(
            in_format(name, Linear(m, options.d, options.d)),
            backend.machine,
            {"format": name},
            clocks=(CLOCK,),
            rounds=options.rounds,
            experiment="batching",
        )
        for name in formats_of(options.formats)
        for m in reversed(batches)
    ]
    yield from backend.timed(jobs, options.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """The time of each format and batch, and what it makes of HBM and of the tensor cores."""
    for name, by_batch in _walks(records).items():
        for m, record in by_batch.items():
            placed, layer = _placed(record), layer_of(record)
            found = _timed(record, past)
            case = f"{name}, m = {m:,}, {placed.roofline.regime}"
            row = time_row(case, f"{record.kernel}, us", record, found)
            yield row
            for what, amount in (("weights, TB/s", layer.bytes["weights"]), ("TFLOP/s", layer.flops)):
                rates = (amount / us * 1e6 / TERA if us else None for us in (row.theory, row.simulated, row.measured))
                yield Row(case, what, *rates, row.source)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """Where each format's roofline bends: by the ridge, as predicted, and as measured."""
    walks = _walks(records)
    sentences, held = [], []
    for name, by_batch in walks.items():
        first = _placed(next(iter(by_batch.values())))
        flip = _flip(first)
        sentence = f"{name} bends at m = {flip:,} by the data sheet"
        predicted = _crossing({m: r.predicted_us for m, r in by_batch.items()}, flip)
        if predicted:
            sentence += f", {predicted:.0f} predicted"
        timed = {m: t for m, r in by_batch.items() if (t := _timed(r, past))}
        found = _crossing({m: t.us for m, t in timed.items()}, flip) if comparable(list(timed.values())) else None
        if found:
            sentence += f", {found:.0f} measured"
            held.append(flip / SPREAD <= found <= flip * SPREAD)
        sentences.append(sentence)
    ridge = f"(the ridge of bf16 is {_ridge(walks):.0f} FLOP/B)" if walks else ""
    return Verdict(all(held) if held else None, f"{'; '.join(sentences)} {ridge}.")


def pictures(past: Archive) -> dict[str, Chart]:
    """The time of a layer over its tokens, by format: flat while HBM binds, then rising with the tokens."""
    records = past.newest_run(experiment="batching", on="sim")
    walks = _walks(records)
    if not walks:
        return {}
    series = []
    for name, by_batch in walks.items():
        predicted = ((m, record.predicted_us, record) for m, record in by_batch.items() if record.predicted_us)
        timed = ((m, found.us, found) for m, r in by_batch.items() if (found := _timed(r, past)) and found.us)
        series += [*drawn(name, predicted, "predicted"), *drawn(name, timed)]
    layer, chip = layer_of(records[0]), machine(records[0].machine)
    title = f"A layer of {layer.n:,} x {layer.k:,} on the {chip.title}, launches back to back"
    return {"batching": Chart(title, "tokens", "time, us", tuple(series))}


def _crossing(times: dict[int, float | None], flip: int) -> float | None:
    """Where the plateau of few tokens meets the slope of many: the measured ridge in tokens.

    None where no batch lies well on the slope, beyond twice the predicted bend.
    """
    known = {m: us for m, us in times.items() if us}
    if not known or max(known) < 2 * flip or min(known) > 1:
        return None
    return max(known) * known[min(known)] / known[max(known)]


def _walks(records: Sequence[Record]) -> dict[str, dict[int, Record]]:
    """By format and batch, fewest tokens first."""
    found: dict[str, dict[int, Record]] = {}
    for record in cases(records):
        found.setdefault(str(record.metrics["format"]), {})[layer_of(record).m] = record
    return {name: dict(sorted(walk.items())) for name, walk in found.items()}


def _timed(record: Record, past: Archive) -> Record | None:
    return measured(past, record, CLOCK)


def _placed(record: Record) -> Explanation:
    return explain(layer_of(record), machine(record.machine))


def _ridge(walks: dict[str, dict[int, Record]]) -> float:
    return _placed(next(iter(next(iter(walks.values())).values()))).roofline.ridge


def _flip(first: Explanation) -> int:
    """The smallest m at which a layer like the first one is compute-bound."""
    low, high = 1, 2**24
    while low < high:
        middle = (low + high) // 2
        if explain(replace(first.problem, m=middle), first.machine).roofline.regime == "compute":
            high = middle
        else:
            low = middle + 1
    return low
