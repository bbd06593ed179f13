"""Batching walks decode up the roofline: the same weights against more and more tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from experiments._chips import Chip
from experiments._rows import CLOCKS, Row, Verdict, cases, measured, question_of, times
from lab.explain import Explanation, explain
from lab.problems import Linear
from lab.record import Archive, Record
from sim.errors import InputError
from sim.machine import machine

QUESTION = "How many sequences must be decoded together before decode is compute-bound?"
CHECK_S = 0.3  # seconds of simulated arithmetic for each of the many checks


@dataclass(frozen=True)
class Options:
    """A square layer of width d, decoded for 1, 2, 4, ... up to `most` sequences."""

    d: int = 4096
    most: int = 1024
    gemm: str = "gemm_wgmma"
    gemv: str = "gemv_vectorized"

    def __post_init__(self) -> None:
        if self.most < 1 or self.gemm == self.gemv:
            kernels = f"{self.gemm} and {self.gemv}"
            raise InputError(f"batching needs most of at least 1 and two kernels; most = {self.most}, {kernels}")


def measure(options: Options, chip: Chip) -> Iterator[Record]:
    """Both kernels at every batch."""
    batches = takewhile(lambda m: m <= options.most, (2**i for i in range(31)))
    problems = [Linear(m, options.d, options.d) for m in batches]
    yield from chip.kernels([(name, p) for p in problems for name in (options.gemv, options.gemm)], budget_s=CHECK_S)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Intensity and the time of each kernel, by batch."""
    for m, pair in _by_batch(records).items():
        case = f"m = {m:,}, {_explained(pair[0]).roofline.regime}"
        yield Row(case, "intensity, FLOP/B", _explained(pair[0]).roofline.intensity, None, None)
        for record in pair:
            found = next(filter(None, (measured(past, record, clock) for clock in CLOCKS)), None)
            yield Row(
                case,
                f"{record.kernel}, us",
                _explained(record).roofline.floor_us,
                record.predicted_us,
                found.us if found else None,
                found.source if found else "",
            )


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """Where the regime flips, and where the GEMM takes over."""
    by_batch = _by_batch(records)
    regimes = {m: _explained(pair[0]).roofline.regime for m, pair in by_batch.items()}
    compute = [m for m, regime in regimes.items() if regime == "compute"]
    last = max((m for m, regime in regimes.items() if regime != "compute"), default=0)
    first = _explained(next(iter(by_batch.values()))[0])
    most = _explained(list(by_batch.values())[-1][0])
    flip = _flip(first)
    duels = {m: times(pair, past) for m, pair in by_batch.items() if len(pair) == 2}
    source = "measured" if duels and all(name == "measured" for _, name in duels.values()) else "predicted"
    takes_over = next((m for m, ((gemv, gemm), _) in duels.items() if gemm < gemv), None)
    near = first.roofline.ridge <= flip <= 2 * first.roofline.ridge
    between = f"between m = {last:,} and m = {min(compute):,}" if compute else f"beyond m = {last:,}"
    return Verdict(
        near and (not compute or last < min(compute)),
        f"FLOPs per weight byte climb from {first.problem.weight_intensity:.3g} to "
        f"{most.problem.weight_intensity:,.4g}; the regime flips {between} (at m = {flip:,} with activations counted, "
        f"the ridge is {first.roofline.ridge:.0f}); "
        + (
            f"the GEMM kernel wins from m = {takes_over:,} on ({source})."
            if takes_over
            else "the GEMV kernel always wins."
        ),
    )


def _by_batch(records: Sequence[Record]) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = {}
    for record in cases(records):
        problem = question_of(record)
        assert isinstance(problem, Linear)
        found.setdefault(problem.m, []).append(record)
    return found


def _explained(record: Record) -> Explanation:
    return explain(question_of(record), machine(record.machine))


def _flip(first: Explanation) -> int:
    """The smallest m at which a layer like the first one is compute-bound; 0 where none is."""
    assert isinstance(first.problem, Linear)
    n, k = first.problem.n, first.problem.k
    low, high = 1, 2**24
    while low < high:
        middle = (low + high) // 2
        if explain(Linear(middle, n, k), first.machine).roofline.regime == "compute":
            high = middle
        else:
            low = middle + 1
    return low if low < 2**24 else 0
