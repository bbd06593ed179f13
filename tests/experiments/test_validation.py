"""Scores of predictions: each launch by three predictions, families by card and clock, the worst first."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from experiments.cli import run_command
from experiments.launched import Launched, launched
from experiments.validation import (
    LEAST_TRIED,
    LEAST_US,
    NEAR,
    cell_rows,
    choice_rows,
    choices,
    families,
    family_rows,
    scored,
    step_rows,
    steps,
)
from lab import catalog, record
from lab.cards import fits
from lab.choice import legal_candidates
from lab.compile import code_digest
from lab.inference import step_us
from lab.kernel import schedule_fields
from lab.problems import MODELS
from lab.record import Archive, Record
from sim.machine import H200
from tests.experiments.test_fitting import PROBLEMS
from tests.experiments.test_fitting import record as timed


def scaled(number: int, factor: float, before: float | None = None) -> Record:
    """A record of the problem of that number whose prediction is so many times its time."""
    us = Launched(timed(PROBLEMS[number], 1.0)).predicted_us() / factor
    return timed(PROBLEMS[number], us, predicted_us=None if before is None else before * us)


LARGE = [number for number, problem in enumerate(PROBLEMS) if problem.n * problem.k > 2**25][:4]
RECORDS = [scaled(LARGE[0], 1.1, before=2.0), scaled(LARGE[1], 0.7), scaled(LARGE[2], 1.0, before=0.5)]


def test_errors_are_shares_of_the_measured_time() -> None:
    found = scored([Launched(one) for one in RECORDS])
    assert [one.today for one in found] == pytest.approx([-0.3, 0.1, 0.0])
    assert [one.before for one in found] == [None, pytest.approx(1.0), pytest.approx(-0.5)]
    assert all(one.roofline == pytest.approx(one.launch.floor_us / one.launch.us - 1) for one in found)
    (family,) = families(found)
    assert (family.family, family.machine, family.clock) == ("gemv", "h200", "graph")
    assert (family.today.launches, family.today.mean, family.today.worst) == (3, 0.1333, 0.3)
    assert family.near == family.today, "each is the fastest of its problem"
    assert family.before is not None
    assert (family.before.launches, family.before.mean, family.before.worst) == (2, 0.75, 1.0)
    assert len(family_rows([family])[0]) == len(family_rows([family._replace(before=None)])[0])
    assert cell_rows(found)[0][-3:-1] == ["-30.0%", "-"]


def test_older_code_and_runs_at_a_cap_are_scored_and_told() -> None:
    """Today's code, another, one that the record does not tell; and one of a card that reached its cap."""
    today = code_digest(catalog.get(RECORDS[0].kernel or "").source)
    doubts: list[dict[str, Any]] = [{"code": today, "throttle": ["power cap"]}, {"code": "0"}, {"throttle": []}]
    known = [Launched(msgspec.structs.replace(r, **how)) for r, how in zip(RECORDS, doubts, strict=True)]
    found = scored(known)
    told = {one.launch.us: (one.as_dict()["older_code"], one.as_dict()["throttle"]) for one in found}
    assert [told[launch.us] for launch in known] == [(False, ["power cap"]), (True, None), (None, [])]
    (family,) = families(found)
    assert (family.today.launches, family.older_code, family.unknown_code, family.throttled) == (3, 1, 1, 1)
    assert family_rows([family])[0][3:6] == ["3", "1 / 1", "1"]


def test_what_took_far_longer_than_the_fastest_is_not_near() -> None:
    """And a kernel without a model, whose largest bill is a bound, is not scored."""
    other = {name: str(value) for name, value in (RECORDS[0].schedule or {}).items()} | {"rows": "2", "split_k": "4"}
    far = msgspec.structs.replace(RECORDS[0], schedule=other, us=(RECORDS[0].us or 0.0) * (NEAR + 0.01))
    naive = catalog.get("gemm_naive")
    bound = msgspec.structs.replace(
        RECORDS[0], kernel=naive.name, schedule=schedule_fields(naive.best_guess(PROBLEMS[LARGE[0]], H200)), us=1e6
    )
    (family,) = families(scored([Launched(one) for one in (RECORDS[0], far, bound)]))
    assert family.near is not None
    assert (family.today.launches, family.near.launches) == (2, 1)


def test_cards_and_clocks_are_not_mixed_and_short_launches_are_left_out() -> None:
    cold, h100 = (msgspec.structs.replace(RECORDS[0], **one) for one in ({"clock": "cold"}, {"machine": "h100"}))
    short = timed(PROBLEMS[0], LEAST_US)
    found = families(scored([Launched(one) for one in (RECORDS[0], cold, h100, short)]))
    assert [(one.machine, one.clock, one.today.launches) for one in found] == [
        ("h100", "graph", 1), ("h200", "cold", 1), ("h200", "graph", 1),
    ]  # fmt: skip


def test_a_choice_costs_what_the_predicted_fastest_takes_beyond_the_fastest() -> None:
    """Schedules of one problem whose times rank as predicted, but for the predicted best, which takes a fifth more."""
    kernel, problem = catalog.get("gemv_mma"), PROBLEMS[0]
    schedules = list(legal_candidates(kernel, problem, H200))[:LEAST_TRIED]
    launches = [Launched(timed(problem, 1.0, schedule=schedule_fields(schedule))) for schedule in schedules]
    ranked = sorted(launches, key=Launched.predicted_us)
    times = [2.4, 2.0, *(3.0 + place for place in range(LEAST_TRIED - 2))]
    known = [Launched(msgspec.structs.replace(one.record, us=us)) for one, us in zip(ranked, times, strict=True)]
    (choice,) = choices(known)
    assert (choice.machine, choice.clock, choice.problem, choice.tried) == ("h200", "graph", problem, LEAST_TRIED)
    assert choice.regret == pytest.approx(0.2)
    assert choice_rows([choice, choice._replace(regret=0.04)]) == [["h200", "graph", "2", "50%", "50%", "50%", "20.0%"]]
    assert choices(known[1:]) == [], "too few to choose from"


def test_a_whole_step_is_scored_by_the_clock_of_a_chain() -> None:
    """The newest whose launches overlapped, of each model; no race of its parts, no plain launches."""
    model = replace(MODELS["llama-3-8b"], batch=1, context=512)
    us = step_us(model, [(1, 512)], H200, "chain")
    step = msgspec.structs.replace(RECORDS[0], problem=model.as_dict(), kernel=None, schedule=None, overlapping=True)
    timed_steps = [
        msgspec.structs.replace(step, us=us * 9),
        msgspec.structs.replace(step, us=us / 1.25, predicted_us=us / 2.5),
        msgspec.structs.replace(step, us=us * 9, overlapping=False),
        msgspec.structs.replace(step, us=us * 9, metrics={"stage": "final"}),
    ]
    (found,) = steps(Archive(tuple(timed_steps)))
    assert (found.today, found.before) == (pytest.approx(0.25), pytest.approx(-0.5))
    assert step_rows([found])[0][1:] == ["h200", step.commit[:8], f"{us / 1.25:,.0f}", "+25.0%", "-50.0%"]


def test_a_launch_of_which_an_older_record_lacks_a_field_is_one_launch() -> None:
    """Fields that schedules have since are as usual; the newest time stands, wherever its record lies."""
    whole = RECORDS[0].schedule or {}
    older = {name: value for name, value in whole.items() if name != "late"}
    assert older != whole
    newest = msgspec.structs.replace(RECORDS[0], us=80.0, time="2026-01-02T00:00:00+00:00")
    past = (newest, msgspec.structs.replace(RECORDS[0], schedule=older))
    assert [one.us for one in launched(Archive(past))] == [80.0]
    assert [one.us for one in launched(Archive(past[::-1]))] == [80.0]


def test_launches_that_overlap_in_a_graph_are_scored_by_the_clock_of_a_chain() -> None:
    found = launched(Archive(tuple(msgspec.structs.replace(RECORDS[0], overlapping=one) for one in (True, False))))
    assert sorted(one.asked.clock for one in found) == ["chain", "graph"]
    chain, graph = sorted(found, key=lambda one: one.asked.clock)
    assert chain.predicted_us() < graph.predicted_us()


def test_predictions_by_what_was_fitted_on_another_card(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "archive", lambda: Archive(tuple(RECORDS)))
    assert run_command(["validate", "--fits", "h100", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    with fits.trial(*fits.of_machine("h100")):
        expected = {round(Launched(one).predicted_us() / (one.us or 0.0) - 1, 9) for one in RECORDS}
    assert {round(one["today"], 9) for one in document["launches"]} == expected
    assert expected != {0.1, -0.3, 0.0}
    assert run_command(["validate", "--fits", "h300"]) == 2
    assert "no line of the machine h300" in capsys.readouterr().err


def test_the_verb_shows_families_and_the_worst(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "archive", lambda: Archive(tuple(RECORDS)))
    assert run_command(["validate", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["launches"] for one in (family["today"] for family in document["families"])] == [3]
    assert [one["today"] for one in document["launches"]] == pytest.approx([-0.3, 0.1, 0.0])
    assert run_command(["validate", "--top", "1"]) == 0
    said = capsys.readouterr().out
    assert "-30.0%" in said
    assert "+10.0%" not in said
    assert run_command(["validate", "--kernel", "gemm_cluster"]) == 2
    assert "no such launch" in capsys.readouterr().err
