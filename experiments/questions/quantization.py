"""Fewer bytes a weight: how linear the win is for one token, and how far each format is from its own floor."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.chart import Chart, Series
from experiments.lookup import READ, cases, comparable, drawn, layer_of, measured, read_of, times
from experiments.rows import Row, Verdict, time_row
from experiments.running.backends import Backend
from experiments.running.formats import chosen_job, formats_of, in_format
from lab.problems import Linear
from lab.record import Archive, Record
from sim.errors import InputError
from sim.machine import machine

QUESTION = "Is decode as many times faster as its weights have fewer bytes?"

CLOCK = "graph"
MEGA = 1e6
LINEAR = 0.85  # of the ratio of bytes that the ratio of times must reach on the largest layer
SHAPES = ((4096, 4096), (8192, 8192), (16384, 16384))  # n, k


@dataclass(frozen=True)
class Options:
    """Square layers of three widths for m tokens, in `formats` joined by +, all compared with the first of them."""

    m: int = 1
    formats: str = "bf16+fp8+int4_g128+int4_g32"
    widest: int = 16384
    rounds: int = 20
    seconds: int = 200

    def __post_init__(self) -> None:
        formats_of(self.formats)
        if min(self.m, self.rounds, self.seconds, self.widest) < 1:
            given = f"{self.m}, {self.widest}, {self.rounds}, {self.seconds}"
            raise InputError(f"quantization needs m, widest, rounds and seconds of at least 1; got {given}")

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [shape for shape in SHAPES if max(shape) <= self.widest] or [(self.widest, self.widest)]


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """What the lab chooses for each layer and format, beside a plain read of as many bytes."""
    jobs = [
        chosen_job(
            in_format(name, Linear(options.m, n, k)),
            backend.machine,
            {"format": name},
            clocks=(CLOCK,),
            plain=True,
            reads=True,
            rounds=options.rounds,
            experiment="quantization",
        )
        for n, k in options.shapes
        for name in formats_of(options.formats)
    ]
    yield from backend.timed(jobs, options.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Each layer's bytes and time, the plain read's time, and both ratios to the first format."""
    for name, by_format in _layers(records).items():
        first = next(iter(by_format.values()))
        for form, record in by_format.items():
            case, layer = f"{name}, {form}", layer_of(record)
            found, base = (measured(past, one, CLOCK) for one in (record, first))
            row = time_row(case, f"{record.kernel}, us", record, found)
            yield row
            if found and (read := read_of(past.records, found)):
                yield Row(case, f"{READ}, us", None, None, read, row.source)
            if record is not first:
                fewer = layer_of(first).bytes["weights"] / layer.bytes["weights"]
                predicted = (first.predicted_us or 0) / (record.predicted_us or 1)
                faster = (base.us or 0) / (found.us or 1) if base and found and comparable([base, found]) else None
                source = row.source if faster else ""
                yield Row(case, "times faster; theory: times fewer bytes", fewer, predicted, faster, source)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """On the largest layer: the speed-up of each format over the ratio of bytes; and the line through all times.

    Layers that were timed in every format count where there are any, else predictions.
    """
    found = _layers(records)
    timed = {name: each for name, each in found.items() if times([*each.values()], past, [CLOCK])[1] == "measured"}
    layers = timed or found
    if not layers:
        return Verdict(False, "Nothing was run.")
    every = [record for by_format in layers.values() for record in by_format.values()]
    all_us, source = times(every, past, [CLOCK])
    us = dict(zip(map(id, every), all_us, strict=True))
    name, by_format = list(layers.items())[-1]
    first = next(iter(by_format.values()))
    shares = {}
    for form, record in by_format.items():
        if record is not first:
            fewer = layer_of(first).bytes["weights"] / layer_of(record).bytes["weights"]
            shares[form] = us[id(first)] / us[id(record)] / fewer
    said = ", ".join(f"{form} {share:.2f}" for form, share in shares.items())
    slope, start = np.polyfit([layer_of(record).bytes["weights"] for record in every], all_us, 1)
    line = f"about {start:.1f} us + bytes at {1e-6 / slope:.2f} TB/s" if slope > 0 else "on no line"
    linear = min(shares.values(), default=1.0) >= LINEAR
    return Verdict(
        linear or (False if source == "measured" else None),
        f"On {name} the speed-up is this share of the ratio of bytes: {said or 'only one format'}; "
        f"all times lie {line} ({source}).",
    )


def pictures(past: Archive) -> dict[str, Chart]:
    """The time of each layer over the bytes of its weights, by format, above the time that the bytes take."""
    records = [
        r for layer in _layers(past.newest_run(experiment="quantization", on="sim")).values() for r in layer.values()
    ]
    if not records:
        return {}
    chip = machine(records[0].machine)
    by_format: dict[str, list[Record]] = {}
    for record in records:
        by_format.setdefault(str(record.metrics["format"]), []).append(record)
    sizes = [layer_of(record).bytes["weights"] / MEGA for record in records]
    ends = tuple((size, size * MEGA / chip.hbm_bandwidth * 1e6) for size in (max(sizes), min(sizes)))
    series = [Series("HBM: data sheet", ends, "limit")]
    for form, layers in by_format.items():
        sizes = [layer_of(record).bytes["weights"] / MEGA for record in layers]
        predicted = ((x, r.predicted_us, r) for x, r in zip(sizes, layers, strict=True) if r.predicted_us)
        pairs = ((x, measured(past, r, CLOCK)) for x, r in zip(sizes, layers, strict=True))
        timed = ((x, found.us, found) for x, found in pairs if found and found.us)
        series += [*drawn(form, predicted, "predicted"), *drawn(form, timed)]
    title = f"Layers of {layer_of(records[0]).m} token on the {chip.title}, launches back to back"
    return {"quantization": Chart(title, "weights, MB", "time, us", tuple(series))}


def _layers(records: Sequence[Record]) -> dict[str, dict[str, Record]]:
    """By shape and format, in the order of the run."""
    found: dict[str, dict[str, Record]] = {}
    for record in cases(records):
        layer = layer_of(record)
        found.setdefault(f"{layer.n:,} x {layer.k:,}", {})[str(record.metrics["format"])] = record
    return found
