"""What is predicted is one number on every path: check, bench's records, explain, generate."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.cli.checking import Subject, on_sim
from lab import catalog, choice, explain
from lab.cards import CLOCKS
from lab.gpu.bench import Bench, Candidate
from lab.gpu.timing import Clock
from lab.inference.step import planned
from lab.kernel import RANKING_CLOCK
from lab.problems import Linear
from sim.machine import H100
from tests.lab.gpu.fake_bench import install
from tests.strategies import problems, schedules


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_check_and_a_benchs_records_say_what_the_kernel_predicts(
    data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = data.draw(st.sampled_from(catalog.kernels()))
    problem = data.draw(problems(kernel))
    schedule = data.draw(schedules(kernel, problem))
    install(monkeypatch)
    document = on_sim(Subject(kernel, problem, schedule, H100))
    records = Bench(problem, H100, seed=1).race([Candidate(kernel, schedule)], {}, tuple(Clock), rounds=2)
    assert [r.clock for r in records] == list(CLOCKS)
    for record in records:
        predicted = kernel.predicted_us(problem, schedule, H100, str(record.clock))
        assert record.predicted_us == predicted == document["predicted"][record.clock]["us"]
    assert document["predicted_us"] == document["predicted"][RANKING_CLOCK]["us"]
    monkeypatch.undo()


@pytest.mark.parametrize(("m", "n", "k"), [(1, 64, 512), (7, 96, 64), (40, 128, 256)])
def test_explain_and_generate_say_it_of_the_chosen_kernel(m: int, n: int, k: int) -> None:
    problem = Linear(m, n, k)
    kernel, schedule, _ = choice.choose(problem, H100)
    document: dict[str, Any] = explain(problem, H100).as_dict()
    predicted = {clock: kernel.predicted_us(problem, schedule, H100, clock) for clock in CLOCKS}
    assert document["kernel"] == kernel.name
    assert {clock: bills["us"] for clock, bills in document["predicted"].items()} == predicted
    assert document["predicted_us"] == predicted[RANKING_CLOCK]

    assert planned(problem, H100).predicted_us("chain") == predicted["chain"]
