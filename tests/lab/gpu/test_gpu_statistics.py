"""What the lists of times say."""

from collections import Counter
from math import inf, nan
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.gpu.device import Conditions
from lab.gpu.statistics import is_impossible, median_interval, median_us, summary

TIMES = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=60)


@given(TIMES)
def test_the_interval_holds_the_median_and_lies_in_the_samples(samples: list[float]) -> None:
    low, high = median_interval(samples)
    assert min(samples) <= low <= median_us(samples) <= high <= max(samples)
    assert {low, high} <= set(samples)
    assert median_us(samples) == median(samples)


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        low, high = median_interval(list(rng.exponential(1.0, 25)))
        covered += low <= np.log(2) <= high
    assert covered / 2000 > 0.94  # order statistics are discrete: the interval is never too short


def test_the_interval_narrows_with_more_samples() -> None:
    rng = np.random.default_rng(1)
    widths = [high - low for low, high in (median_interval(list(rng.normal(100, 1, n))) for n in (10, 100, 1000))]
    assert widths[0] > widths[1] > widths[2]


@pytest.mark.parametrize("bad", [[], [1.0, nan], [0.0], [-1.0]])
def test_no_median_of_what_are_no_times(bad: list[float]) -> None:
    with pytest.raises(ValueError, match=r"sample|positive"):
        median_us(bad)


def test_a_time_below_the_floor_is_impossible() -> None:
    assert is_impossible(9.9, 10.0)
    assert not is_impossible(10.0, 10.0)
    assert not is_impossible(inf, 10.0)


def test_conditions_are_summed_up() -> None:
    seen = summary(
        [
            Conditions(1700, 2619, 600.0, 60, ("power cap",)),
            Conditions(1800, 2619, 650.0, 65, ()),
            Conditions(1900, None, None, None, ("power cap", "software thermal")),
        ]
    )
    assert (seen.sm_clock, seen.memory_clock, seen.power_w, seen.temperature_c) == (1800, 2619, 625, 65)
    assert seen.throttle is not None
    assert Counter(seen.throttle) == Counter(("power cap", "software thermal"))
    assert summary([Conditions(), Conditions()]) == Conditions()
