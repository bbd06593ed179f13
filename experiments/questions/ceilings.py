"""What the card itself does: the rates that every floor is measured against."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.lookup import CLOCKS, ceilings, read_rate
from experiments.rows import Row, Verdict, timed_by
from experiments.running.backends import Backend
from lab.record import Archive, Record
from sim.machine import machine

QUESTION = "How fast does this card read, copy and launch, beside its data sheet?"


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


def measure(options: Options, backend: Backend) -> Iterator[Record]:  # noqa: ARG001
    """The data sheet's figures, or on a GPU the measured ones."""
    yield from backend.ceilings()


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Data sheet beside the newest measurement, on either clock."""
    chip = machine(records[0].machine)
    sheet = chip.hbm_bandwidth / 1e12
    found = ceilings(past, chip.name)
    if not found:
        yield Row(chip.title, "read, TB/s", sheet, None, None)
    for record in found:
        what, clock = record.metrics["what"], CLOCKS.get(record.clock or "", "host")
        size = record.metrics.get("nbytes")
        if size:
            rate = float(record.metrics["bytes_per_s"] or 0) / 1e12
            yield Row(
                chip.title, f"{what} {int(size) / 2**20:,.0f} MiB {clock}, TB/s", sheet, None, rate, record.source
            )
        else:
            yield timed_by(Row(chip.title, f"{what} {clock}, us", None, None, None), record)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """The share of the data sheet's bandwidth that a read kernel gets."""
    chip = machine(records[0].machine)
    sheet = f"{chip.hbm_bandwidth / 1e12:.4g} TB/s"
    rate, source = read_rate(past, chip.name)
    if rate is None:
        return Verdict(None, f"No {chip.title} has been measured here; its data sheet says {sheet}.")
    share = rate / chip.hbm_bandwidth
    return Verdict(
        share <= 1, f"A read kernel gets {rate / 1e12:.3g} TB/s on {source}: {share:.1%} of the data sheet's {sheet}."
    )
