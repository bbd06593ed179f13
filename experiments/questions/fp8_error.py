"""What the few bits of the tensor cores' fp8 sums cost, and what promotion to float32 gives back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf
from statistics import NormalDist

import numpy as np

from experiments.lookup import CLOCKS, cases, layer_of, measured, note
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
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


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Both kernels at every depth, each with the accumulation it is made for."""
    o = options
    wanted = []
    for k in (k for k in DEPTHS if k <= o.most):
        for kernel, accumulate in ((o.fast, "fast"), (o.promoted, "float32")):
            wanted.append((kernel, Linear(o.m, o.n, k, "fp8", "fp8", accumulate=accumulate)))
    yield from backend.kernels(wanted, budget_s=CHECK_S)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Relative error beside what rounding a right y costs alone, and the largest error over its bound."""
    for record in cases(records):
        problem = layer_of(record)
        found = _measured(record, past)
        here = record if record.on == "sim" else None
        source = found.source if found else ""
        case = f"k = {problem.k:,}, {_summed(problem)}"
        alone, doubt = rounding_alone(problem.output), note(record, found)
        yield Row(case, "relative error", alone, _error(here), _error(found), source, doubt)
        yield Row(case, "largest error / bound", 1.0, _of_bound(here), _of_bound(found), source, doubt)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """Whether float32 sums leave only the rounding of y, and what the tensor cores' own sums leave."""
    every = cases(records)
    on_gpu = [_error(_measured(record, past)) for record in every]
    real = None not in on_gpu
    fast: dict[int, float] = {}
    float32: dict[int, float] = {}
    for record, found in zip(every, on_gpu, strict=True):
        error = found if real else _error(record)
        problem = layer_of(record)
        (fast if problem.fast else float32)[problem.k] = inf if error is None else error
    form = layer_of(every[0]).output
    alone, worst = rounding_alone(form), max(float32.values())
    first, last = min(fast), max(fast)
    where = "measured" if real else "simulated, where tensor cores sum in float32 too"
    return Verdict(
        worst <= ALLOWED * alone,
        f"Summed in float32, y is off by at most {worst:.2e} of its norm, of which rounding it to {form} costs "
        f"{alone:.2e}; summed in the tensor cores, by {fast[first]:.2e} at k = {first:,} and {fast[last]:.2e} at "
        f"k = {last:,} ({where}).",
    )


@cache
def rounding_alone(form: str, points: int = 2**16) -> float:
    """||y - rounded y|| / ||y|| of a normal distribution, by its quantiles."""
    normal = NormalDist()
    y = np.array([normal.inv_cdf((i + 0.5) / points) for i in range(points)])
    return float(np.linalg.norm(decode(encode(y, form), form) - y) / np.linalg.norm(y))


def _summed(problem: Linear) -> str:
    return "summed in the tensor cores (simulated: float32)" if problem.fast else "summed in float32"


def _measured(record: Record, past: Archive) -> Record | None:
    return next(filter(None, (measured(past, record, clock) for clock in CLOCKS)), None)


def _error(record: Record | None) -> float | None:
    found = record.metrics.get("relative_error") if record else None
    return float(found) if found is not None else None


def _of_bound(record: Record | None) -> float | None:
    return record.check.error if record and record.check else None
