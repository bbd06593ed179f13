"""Ridge points: how many operations a byte must feed before a chip is compute-bound, by chip and by unit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
from lab.record import Archive, Record
from sim.errors import InputError
from sim.machine import MACHINES

QUESTION = "Where is the ridge of each chip, and does it climb from one to the next?"

ARTICLE = {("a100", "fp32"): 13, ("a100", "bf16"): 200, ("h100", "bf16"): 295}  # FLOP per byte, as it rounds them
TWIN = "fp16"  # runs at bf16's rate on all of them
TOLERANCE = 0.05  # of the article's figures: it says "about", and takes 1.5 TB/s for the A100


@dataclass(frozen=True)
class Options:
    """`unit` is the format whose ridge is followed from chip to chip."""

    unit: str = "bf16"

    def __post_init__(self) -> None:
        units = sorted({unit for machine in MACHINES.values() for unit in machine.peaks} - {TWIN})
        if self.unit not in units:
            raise InputError(f"unknown unit {self.unit!r}; units: {', '.join(units)}")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """One record a chip and unit."""
    for machine in MACHINES.values():
        for unit in sorted(set(machine.peaks) - {TWIN}):
            metrics = {"unit": unit, "followed": unit == options.unit, "ridge_flop_per_byte": machine.ridge(unit)}
            said = ARTICLE.get((machine.name, unit))
            yield backend.closed_form(metrics | ({"article_flop_per_byte": said} if said else {}), machine=machine)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001  (nothing here is measured)
    """One row a chip and unit, with the article's figure where it gives one."""
    for record in records:
        m = record.metrics
        said = m.get("article_flop_per_byte")
        quantity = "ridge, FLOP/B" + (f" (article: {said})" if said else "")
        yield Row(f"{MACHINES[record.machine].title}, {m['unit']}", quantity, _number(record), None, None)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """Whether the article's ridges hold, and whether they climb."""
    said = [(r.metrics["article_flop_per_byte"], _number(r)) for r in records if "article_flop_per_byte" in r.metrics]
    hold = all(abs(ridge - float(article or 0)) <= TOLERANCE * float(article or 0) for article, ridge in said)
    figures = ", ".join(f"{article}" for article, _ in said)
    followed = [r for r in records if r.metrics["followed"]]
    falls = [(a, b) for a, b in pairwise(followed) if _number(b) < _number(a)]
    path = ", ".join(f"{r.machine.upper()} {_number(r):.0f}" for r in followed)
    unit = followed[0].metrics["unit"]
    climbs = (
        "it climbs with every chip"
        if not falls
        else (
            "it does not climb with every chip: it falls "
            + " and ".join(f"from {a.machine.upper()} to {b.machine.upper()}" for a, b in falls)
        )
    )
    return Verdict(
        hold,
        f"The article's ridges {figures} {'hold' if hold else 'do not hold'}; in {unit} the ridge is {path}: {climbs}.",
    )


def _number(record: Record) -> float:
    return float(record.metrics["ridge_flop_per_byte"] or 0.0)
