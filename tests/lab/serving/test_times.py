"""Predicted steps: the table is an upper bound of the steps it stands for, and buckets have room for every plan."""

from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.inference import step_us
from lab.problems import MODELS
from lab.serving.policy import Policy
from lab.serving.step import CHUNKS, Buckets
from lab.serving.times import StepTimes
from sim.machine import H200

MODEL = MODELS["smollm2-135m"]
POLICY = Policy(max_rows=64, max_tokens=512, max_length=8192)


@lru_cache
def times() -> StepTimes:
    return StepTimes(MODEL, H200, POLICY.buckets)


@given(st.integers(0, 64), st.integers(0, 400), st.integers(0, 7000), st.integers(0, 7000))
@settings(max_examples=40, deadline=None)
def test_the_table_says_at_least_what_a_step_of_equal_rows_takes(
    singles: int, chunk: int, length: int, start: int
) -> None:
    if chunk < 2:
        return
    rows = [1] * singles + [chunk]
    starts = [length] * singles + [start]
    told = times().step(singles, sum(rows), (length + 1) * singles, start).us
    assert told >= times().rows_us(starts, rows) * (1 - 1e-9)


@lru_cache
def tabled() -> StepTimes:
    found = StepTimes(MODEL, H200, Policy(max_rows=12, max_tokens=160, max_length=3000).buckets)
    found.prepare(table=True)
    return found


@given(st.integers(0, 12), st.integers(0, 96), st.integers(0, 2900), st.integers(0, 2999))
@settings(deadline=None)
def test_no_budget_asks_for_what_the_table_lacks(singles: int, chunk: int, length: int, start: int) -> None:
    worked_out = tabled().worked_out
    tabled().step(singles, singles + 64 + chunk % (97 - singles), singles * (length + 1), start)
    if singles:
        tabled().step(singles, singles, singles * (length + 1), 0)
    assert tabled().worked_out == worked_out


def test_a_full_bucket_takes_what_the_whole_step_is_predicted_to() -> None:
    rows = [(1, 8192)] * 16
    assert times().rows_us([8191] * 16, [1] * 16) == pytest.approx(step_us(MODEL, rows, H200))


def test_what_is_recomputed_takes_longer_the_more_it_is() -> None:
    costs = [times().recompute_us(tokens) for tokens in (100, 1000, 5000)]
    assert costs == sorted(costs)
    assert times().swap_us(2) == 2 * times().swap_us(1) > 0


@given(st.integers(1, 300), st.integers(1, 4096), st.data())
def test_every_plan_fits_its_bucket(max_rows: int, more: int, data: st.DataObject) -> None:
    buckets = Buckets(max_rows, max_rows + more, 4)
    chunks = data.draw(st.integers(0, min(CHUNKS, more // 2, max_rows)))
    singles = data.draw(st.integers(0 if chunks else 1, max_rows - chunks or 1))
    if singles + chunks > max_rows:
        return
    tokens = singles + (data.draw(st.integers(2 * chunks, buckets.max_tokens - singles)) if chunks else 0)
    if tokens > buckets.max_tokens or tokens < singles + 2 * chunks:
        return
    layout = buckets.of(singles, chunks, tokens)
    assert layout.tokens >= tokens
    assert layout.rows >= singles + chunks
    if layout.chunks:
        assert layout.chunks >= chunks
        assert layout.rows - layout.chunks >= singles
    assert chunks == 0 or layout.parts[-1][2] == layout.tokens
    assert layout in buckets.all()
