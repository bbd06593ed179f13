"""Regret: the pick against the best of its own race, tuned entries left aside."""

import pytest

from experiments.bars import choice_regret
from experiments.bars.choice_regret import Options
from lab.record import Archive, Record
from sim.errors import InputError
from tests.experiments.examples import linear, timed

SCHEDULE = {"rows": 1, "split_k": 1, "teams": 4, "unroll": 1}


def raced(m: int, pick: float | None, best: float, peer: float | None = None) -> list[Record]:
    """A race's records: the pick's, a faster schedule's, a peer's."""
    facts = {"pick": "gemv_vectorized(rows=1,split_k=1,teams=4,unroll=1)", "seed": 17, "stage": "final"}
    shared = {"problem": linear(m), "run": f"run {m}", "metrics": facts, "experiment": "choice_regret"}
    return [
        timed("gemv_vectorized", pick, schedule=SCHEDULE, **shared),
        timed("gemv_vectorized", best, schedule={**SCHEDULE, "unroll": 2}, **shared),
        *([timed("peer:cublas", peer, **shared)] if peer else []),
    ]


def test_shapes_are_drawn_by_seed_and_each_prefix_has_all_formats() -> None:
    drawn = choice_regret.draw(Options())
    assert drawn == choice_regret.draw(Options()) != choice_regret.draw(Options(seed=18))
    assert drawn[:6] == choice_regret.draw(Options(count=6))
    assert [p.weights for p in drawn[:6]] == ["bf16", "fp8", "int4_g128"] * 2
    assert {1 <= p.m <= 8192 and p.n % 16 == p.k % 16 == 0 and min(p.n, p.k) >= 512 for p in drawn} == {True}
    assert max(p.m for p in choice_regret.draw(Options(most=128))) <= 128


def test_the_verdict_counts_picks_near_the_best() -> None:
    near = [r for m in range(1, 10) for r in raced(m, 10.4, 10.0, 11.0)]
    held = choice_regret.verdict([*near, *raced(200, 11.4, 10.0)], Archive(()))
    assert held.passed
    assert held.sentence.startswith(
        "9 of 10 picks take at most 5% longer than the best of a search, 10 15%; the farthest"
    )
    assert "14.0% (m=200 n=4096" in held.sentence
    assert "of 9 up to m = 128 beside a peer 0 take more than 1.10 of its time" in held.sentence
    far = choice_regret.verdict([*near, *raced(200, 11.6, 10.0)], Archive(()))
    assert not far.passed
    slow = choice_regret.verdict([*near, *raced(16, 10.0, 10.0, 9.0)], Archive(()))
    assert not slow.passed
    assert "1 take more than 1.10 of its time, the most 1.111 (m=16 " in slow.sentence


def test_a_pick_that_does_not_run_is_no_near_one() -> None:
    assert not choice_regret.verdict(raced(4, None, 10.0), Archive(())).passed


def test_the_table_shows_the_newest_draw_alone_the_largest_regret_first() -> None:
    text = choice_regret.table(Archive((*raced(1, 10.2, 10.0), *raced(2, 10.4, 10.0, 12.0))))
    rows = [line for line in text.splitlines() if line.startswith("| ") and "x 4,096" in line]
    assert [row.split(" | ")[0] for row in rows] == ["| 2 x 4,096 x 4,096", "| 1 x 4,096 x 4,096"]
    assert "4.0%" in rows[0]
    assert "No records yet" in choice_regret.table(Archive(()))


def test_a_run_may_begin_amid_the_draw() -> None:
    """So that two turns on a card have each shape of one draw once."""
    with pytest.raises(InputError, match="of 4 shapes the first is 0 to 3; first=4"):
        Options(count=4, first=4)
