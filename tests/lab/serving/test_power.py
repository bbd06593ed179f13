"""A card's power from step to step: it gets warm, slows down, cools, and never is faster than at its full clock."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from lab.problems import MODELS
from lab.serving.executor import Powered, Timeline
from lab.serving.policy import Policy
from lab.serving.power import Coefficients, Heat, Work
from lab.serving.request import Request, Sequence
from lab.serving.step import StepPlan
from lab.serving.times import StepTimes
from sim.machine import H200

RULES = Coefficients(rest=0.2, tensor=1.0, memory=1.0, average_us=1000.0, slower=1.0, decode=0.5, cool=1.0)
FULL = Work(100.0, 80.0, 20.0, mixed=True)  # in each microsecond 0.8 of the peak, 0.2 of the bandwidth: 1.2 of the cap
works = st.builds(Work, st.floats(1, 1e5), st.floats(0, 1e5), st.floats(0, 1e5), st.booleans())


def heat(**rules: float) -> Heat:
    return Heat(structs.replace(RULES, **rules), 1e6, 1e6)


@given(st.lists(st.tuples(works, st.floats(0, 1e5)), max_size=8))
def test_no_step_is_faster_than_at_the_full_clock_and_the_average_stays_between_what_is_drawn(
    steps: list[tuple[Work, float]],
) -> None:
    card, most = heat(), RULES.rest
    for work, idle in steps:
        card.rest(idle)
        most = max(most, RULES.rest + (work.flops + work.nbytes) / work.us)
        assert card.run(work) >= work.us * (1 - 1e-9)
        assert RULES.rest * (1 - 1e-9) <= card.load <= most * (1 + 1e-9)


def test_steps_above_the_cap_slow_down_to_what_the_cap_allows_and_are_fast_again_after_a_rest() -> None:
    card = heat()
    took = [card.run(FULL) for _ in range(200)]
    assert took[0] == pytest.approx(100.0)
    assert all(b >= a for a, b in pairwise(took))
    assert took[-1] == pytest.approx(120.0, rel=1e-3)
    card.rest(1e6)
    assert card.load == pytest.approx(RULES.rest)
    assert card.run(FULL) == pytest.approx(100.0)


def test_rows_that_wait_for_hbm_feel_a_lower_clock_less_and_mixed_steps_are_told_at_the_full_one() -> None:
    cards = heat(), heat(cool=0.8)
    for card in cards:
        card.load = 1.2
    first = cards[0].copy().run(FULL._replace(us=1.0))
    decode = cards[0].run(FULL._replace(us=1.0, mixed=False))
    assert 1.0 < decode < first
    assert cards[1].run(FULL._replace(us=1.0)) == pytest.approx(0.8 * first, rel=1e-3)


@given(st.lists(works, min_size=1, max_size=5))
def test_a_step_that_took_what_it_was_predicted_to_leaves_the_same_warmth(steps: list[Work]) -> None:
    told, measured = heat(), heat()
    for work in steps:
        measured.ran(work, told.run(work))
        assert measured.load == pytest.approx(told.load)


def test_a_prompt_of_an_8b_model_gets_a_card_to_its_cap_and_decoding_does_not() -> None:
    model, policy = MODELS["llama-3-8b"], Policy(max_rows=64, max_tokens=2048, max_length=8192)
    times = StepTimes(model, H200, policy.buckets)
    sequence = Sequence(Request(0, (1,) * 2048, 8))
    prompt = StepPlan(0, [sequence], [0], [2048], [True], tokens=2048)
    token = StepPlan(0, [sequence], [2047], [1], [True], tokens=1, singles=1)
    for plan, slows in ((prompt, True), (token, False)):
        line = Timeline(Powered(times))
        first, *_, last = [line.run(plan, 0.0).us for _ in range(20)]
        assert (last > 1.05 * first) is slows
        rested = line.run(plan, 1e9)
        assert rested.us == pytest.approx(first)
