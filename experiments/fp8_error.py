"""What the few bits of the tensor cores' fp8 sums cost, and what promotion to float32 gives back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from experiments._chips import Chip
from experiments._rows import CLOCKS, Row, Verdict, cases, measured, question_of
from lab.problems import Linear
from lab.record import Archive, Record
from sim.errors import InputError
from sim.formats import decode, encode

QUESTION = "How wrong are fp8 layers whose products are summed in the tensor cores, and in float32?"
DEPTHS = (512, 1024, 4096, 8192, 14336)
CHECK_S = 0.3  # seconds of simulated arithmetic for each of the many checks
ALLOWED = 1.1  # of the error that rounding y costs anyway: what float32 sums may have in all


@dataclass(frozen=True)
class Options:
    """Layers of m tokens and n outputs, for k up to `most`."""

    m: int = 256
    n: int = 1024
    most: int = DEPTHS[-1]
    fast: str = "gemm_cluster"
    promoted: str = "gemm_fp8_promoted"

    def __post_init__(self) -> None:
        if self.most < DEPTHS[0]:
            raise InputError(f"fp8_error begins at k = {DEPTHS[0]}; most = {self.most}")


def measure(options: Options, chip: Chip) -> Iterator[Record]:
    """Both kernels at every depth, each with the accumulation it is made for."""
    o = options
    wanted = []
    for k in (k for k in DEPTHS if k <= o.most):
        for kernel, accumulate in ((o.fast, "fast"), (o.promoted, "float32")):
            wanted.append((kernel, Linear(o.m, o.n, k, "fp8", "fp8", accumulate=accumulate)))
    yield from chip.kernels(wanted, budget_s=CHECK_S)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Relative error beside what rounding a right y costs alone, and the largest error over its bound."""
    for record in cases(records):
        problem = _problem(record)
        found = next(filter(None, (measured(past, record, clock) for clock in CLOCKS)), None)
        here = record if record.on == "sim" else None
        summed = "float32" if problem.accumulate == "float32" else "the tensor cores (simulated: float32)"
        case = f"k = {problem.k:,}, summed in {summed}"
        source = found.source if found else ""
        columns = (rounding_alone(problem.output), _error(here), _error(found))
        yield Row(case, "relative error, 1e-3", *(None if e is None else 1e3 * e for e in columns), source=source)
        yield Row(case, "largest error / bound", 1.0, _of_bound(here), _of_bound(found), source)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """Whether float32 sums leave only the rounding of y, and what the tensor cores' own sums leave."""
    deepest = max(_problem(r).k for r in cases(records))
    errors: dict[tuple[int, str], float] = {}
    real = True
    for record in cases(records):
        found = next(filter(None, (measured(past, record, clock) for clock in CLOCKS)), None)
        known = _error(found)
        real &= known is not None
        errors[_problem(record).k, _problem(record).accumulate] = (
            known if known is not None else _error(record) or float("inf")
        )
    alone = rounding_alone(_problem(records[0]).output)
    promoted = [error for (_, accumulate), error in errors.items() if accumulate == "float32"]
    shallow, deep = errors[min(errors)[0], "fast"], errors[deepest, "fast"]
    where = "measured" if real else "simulated, where the tensor cores sum in float32 too"
    return Verdict(
        max(promoted) <= ALLOWED * alone,
        f"Summed in float32, y is off by {1e3 * max(promoted):.2f}e-3 of its norm at most, of which rounding it to "
        f"{_problem(records[0]).output} costs {1e3 * alone:.2f}e-3; summed in the tensor cores, by "
        f"{1e3 * shallow:.2f}e-3 at k = {min(errors)[0]:,} and {1e3 * deep:.2f}e-3 at k = {deepest:,} ({where}).",
    )


def rounding_alone(form: str, points: int = 4096) -> float:
    """||y - rounded y|| / ||y|| of a normal distribution, by its quantiles."""
    normal = NormalDist()
    y = np.array([normal.inv_cdf((i + 0.5) / points) for i in range(points)])
    return float(np.linalg.norm(decode(encode(y, form), form) - y) / np.linalg.norm(y))


def _problem(record: Record) -> Linear:
    problem = question_of(record)
    assert isinstance(problem, Linear)
    return problem


def _error(record: Record | None) -> float | None:
    found = record.metrics.get("relative_error") if record else None
    return float(found) if found is not None else None


def _of_bound(record: Record | None) -> float | None:
    return record.check.error if record and record.check else None
