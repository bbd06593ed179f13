"""What a list of times says: its middle, its spread, and whether it can be true."""

from collections.abc import Iterable, Sequence
from math import comb, isnan
from statistics import median

from lab.gpu.device import Conditions


def median_us(samples: Sequence[float]) -> float:
    """The median; raises ValueError for no samples and for times that are no positive numbers."""
    if not samples:
        raise ValueError("a median needs at least one sample")
    if any(isnan(s) or s <= 0 for s in samples):
        raise ValueError("a time must be a positive number")
    return median(samples)


def median_interval(samples: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """A distribution-free confidence interval of the median, from order statistics.

    The number of samples below the true median is binomial with p = 1/2 (Conover, "Practical Nonparametric Statistics",
    3.2). With too few samples for the confidence asked, the interval is the whole range.
    """
    ordered = sorted(samples)
    count = len(ordered)
    tail, rank = 0.0, 0
    while rank < count // 2:
        tail += comb(count, rank) / 2**count
        if 2 * tail > 1 - confidence:
            break
        rank += 1
    lowest = max(rank - 1, 0)
    return ordered[lowest], ordered[count - 1 - lowest]


def is_impossible(us: float, floor_us: float) -> bool:
    """Whether a time is below the floor of its work: the measurement is wrong, or its data were in cache."""
    return us < floor_us


def summary(readings: Iterable[Conditions]) -> Conditions:
    """Conditions of a whole run: median clocks and power, highest temperature, every throttle reason seen."""
    seen = list(readings)

    def middle(values: Iterable[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return median(known) if known else None

    temperatures = [c.temperature_c for c in seen if c.temperature_c is not None]
    throttles = [c.throttle for c in seen if c.throttle is not None]
    return Conditions(
        sm_clock=middle(c.sm_clock for c in seen),
        memory_clock=middle(c.memory_clock for c in seen),
        power_w=middle(c.power_w for c in seen),
        temperature_c=max(temperatures, default=None),
        throttle=tuple(dict.fromkeys(reason for reasons in throttles for reason in reasons)) if throttles else None,
    )
