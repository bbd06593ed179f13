"""What is chosen for a problem: the table's entry while it runs, else the smallest predicted time."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import catalog, choice, tuned
from lab.choice import (
    ancestors,
    best_guesses,
    choose,
    contenders,
    is_solvable,
    legal_candidates,
    outgrown,
    predicted_best,
    schedule_words,
    undecided,
)
from lab.kernel import RANKING_CLOCK, parse_schedule, schedule_fields
from lab.problems import Linear
from lab.tuned import TunedClass, put
from sim.errors import InputError
from sim.machine import A100, H100, H200

PROBLEM = Linear(300, 4096, 4096)


@pytest.fixture(autouse=True)
def _no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "TABLE", tmp_path / "tuned.jsonl")


def tabled(kernel: str, schedule: dict[str, Any], **timed_at: int) -> None:
    where: dict[str, Any] = {"us": 1.0, "run": "one", "commit": "abc", "card": "a card", "timed_at": timed_at}
    put([TunedClass(machine="h100", problem_class=PROBLEM.tuned_class(), kernel=kernel, schedule=schedule, **where)])


@pytest.mark.parametrize("m", [1, 300, 4096])
@pytest.mark.parametrize("machine", [A100, H100], ids=lambda m: m.name)
def test_the_choice_has_the_smallest_predicted_time(m: int, machine: Any) -> None:
    problem = Linear(m, 4096, 4096)
    guesses = best_guesses(problem, machine)
    gone = outgrown([guess.kernel for guess in guesses])
    kernel, schedule, launches = choose(problem, machine)
    assert launches == kernel.launches(problem, schedule, machine)
    chosen = kernel.predicted_us(problem, schedule, machine, "graph")
    assert chosen == min(guess.us for guess in guesses if guess.kernel.name not in gone)
    assert kernel.solves.runs_on(machine.arch)


def test_a_format_that_a_newer_architecture_has() -> None:
    kernel, problem = catalog.get("gemv_vectorized"), Linear(1, 64, 64, "fp8")
    assert kernel.solves.runs_on("sm_80")
    assert kernel.solves.runs_on("sm_80", Linear(1, 64, 64))
    assert [arch for arch in ("sm_80", "sm_89", "sm_90a") if kernel.solves.runs_on(arch, problem)] == [
        "sm_89",
        "sm_90a",
    ]
    assert not is_solvable(problem, A100)
    with pytest.raises(InputError, match="gemv_vectorized needs architecture sm_89"):
        choose(problem, A100)


def test_the_tables_entry_is_chosen() -> None:
    kernel, tuned_for = catalog.get("gemm_wgmma"), Linear(512, 4096, 4096)
    schedule = list(kernel.module.candidates(PROBLEM, H100))[-1]
    assert choose(tuned_for, H100)[:2] != (kernel, schedule)
    tabled("gemm_wgmma", schedule_fields(schedule))
    assert choose(tuned_for, H100)[:2] == (kernel, schedule)


def test_an_entry_serves_other_extents_unless_predictions_beat_it_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_mean_error", lambda *_: 0.05)
    fewer = Linear(301, 4096, 4096)
    best = predicted_best(fewer, H100)
    kernel = best.kernel
    _, near, *_, far = sorted(legal_candidates(kernel, fewer, H100), key=time_of(kernel, fewer))
    tabled(kernel.name, schedule_fields(near))
    assert choose(fewer, H100)[:2] == (kernel, near) != (best.kernel, best.schedule)
    tabled(kernel.name, schedule_fields(far))
    assert choose(fewer, H100)[:2] == (best.kernel, best.schedule)
    tabled(kernel.name, schedule_fields(far), m=fewer.m)  # what was timed at these extents is believed
    assert choose(fewer, H100)[:2] == (kernel, far)
    tabled(kernel.name, schedule_fields(far), m=fewer.m + 1)
    assert choose(fewer, H100)[:2] == (best.kernel, best.schedule)
    monkeypatch.setattr(tuned, "user_table", lambda: tuned.TABLE)
    assert choose(fewer, H100)[:2] == (kernel, far)


def time_of(kernel: Any, problem: Linear) -> Any:
    return lambda schedule: kernel.predicted_us(problem, schedule, H100, RANKING_CLOCK)


@pytest.mark.parametrize(
    ("kernel", "schedule"),
    [
        ("gemm_removed", {}),
        ("gemm_wgmma", {"no_such_field": 1}),
        ("gemm_wgmma", {"stages": 99}),
        ("gemv_vectorized", {"rows": "many"}),
    ],
)
def test_an_entry_that_no_longer_runs_is_passed_over(kernel: str, schedule: dict[str, Any]) -> None:
    expected = choose(PROBLEM, H100)
    tabled(kernel, schedule)
    assert choose(PROBLEM, H100) == expected


def kernel_after(name: str, after: str | None) -> Any:
    return SimpleNamespace(name=name, solves=SimpleNamespace(after=after))


def test_a_rung_is_outgrown_by_the_second_one_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = {"naive": None, "tile": "naive", "ring": "tile", "wide": "ring", "split": "ring", "lost": "absent"}
    known = {name: kernel_after(name, after) for name, after in chain.items()}
    monkeypatch.setattr(choice, "catalog", SimpleNamespace(names=lambda: tuple(known), get=known.get))
    assert ancestors(known["wide"]) == ["ring", "tile", "naive"]
    assert ancestors(known["lost"]) == []
    assert outgrown(list(known.values())) == {"naive", "tile"}
    assert outgrown([known["naive"], known["tile"]]) == set()
    assert outgrown([known["naive"], known["ring"]]) == {"naive"}


def test_slow_rungs_are_never_chosen() -> None:
    for problem in (PROBLEM, Linear(4096, 4096, 4096), Linear(1999, 5008, 4104)):
        assert choose(problem, H100)[0].name not in ("gemm_naive", "gemv_naive", "gemv_vectorized")


def test_contenders_are_all_candidates_of_the_kernels_near_the_best() -> None:
    found = list(contenders(PROBLEM, H100))
    assert len(found) == len(set(found)) >= 24
    names = {kernel.name for kernel, _ in found}
    guesses = {guess.kernel.name: guess.us for guess in best_guesses(PROBLEM, H100)}
    near = {name for name, us in guesses.items() if us <= choice.CONTENDING * min(guesses.values())}
    assert names == near < set(guesses)
    for name in names:
        kernel = catalog.get(name)
        legal = list(legal_candidates(kernel, PROBLEM, H100))
        assert [s for k, s in found if k.name == name] == legal
        assert set(legal) == set(kernel.module.candidates(PROBLEM, H100))


def test_a_brief_search_has_the_best_guesses_of_what_is_not_outgrown() -> None:
    every = list(contenders(PROBLEM, H100))
    gone = outgrown([guess.kernel for guess in best_guesses(PROBLEM, H100)])
    brief = [(k, s) for k, s in every if k.name not in gone]
    assert list(contenders(PROBLEM, H100, 3)) == [
        pair for name in dict.fromkeys(k.name for k, _ in brief) for pair in [p for p in brief if p[0].name == name][:3]
    ]
    assert gone & {kernel.name for kernel, _ in every}


def test_words_give_the_schedule_back() -> None:
    kernel, schedule, _ = choose(PROBLEM, H100)
    words = schedule_words(schedule_fields(schedule))

    assert parse_schedule(kernel, words, PROBLEM, H100) == schedule


def test_what_is_undecided_begins_with_the_best_prediction_and_stays_within_the_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = Linear(100, 5120, 13824)
    found = undecided(problem, H200)
    times = [kernel.predicted_us(problem, schedule, H200, RANKING_CLOCK) for kernel, schedule in found]
    assert times == sorted(times)
    assert times[0] == predicted_best(problem, H200).us
    assert len(undecided(problem, H200, most=2)) == 2
    monkeypatch.setattr(choice, "_mean_error", lambda *_: 0.0)
    alone = undecided(problem, H200)
    assert all(kernel.predicted_us(problem, s, H200, RANKING_CLOCK) == times[0] for kernel, s in alone)
    monkeypatch.setattr(choice, "_mean_error", lambda *_: 0.5)
    assert len(undecided(problem, H200, most=10_000)) > len(found)


@pytest.mark.parametrize("machine", [H100, H200])
@pytest.mark.parametrize(
    "problem", [Linear(1, 4096, 4096), Linear(100, 5120, 13824), Linear(64, 4096, 4096, "int4_g128"), Linear(9, 64, 64)]
)
def test_where_each_microsecond_goes_adds_up(problem: Linear, machine: Any) -> None:
    for guess in best_guesses(problem, machine):
        for clock in ("cold", "graph", "chain"):
            bills = guess.kernel.bills(problem, guess.schedule, machine, clock)
            assert sum(bills.waterfall.values()) == pytest.approx(bills.us)
            assert min(bills.waterfall.values()) > -1e-9
            assert set(bills.apart) <= set(bills.parts)
