"""The bars of whole steps: by bytes and layers, by a time, by a rate; predictions on the simulated chip."""

from dataclasses import replace

import pytest

from experiments import runner
from experiments.bars import step_bars
from experiments.bars.step_bars import LLAMA_3_1B, LLAMA_3_8B, PARTS
from lab.problems import Model
from lab.problems.model import PREFILL
from lab.record import Archive, Record
from sim.errors import InputError
from tests.experiments.examples import timed


def stepped(model: Model, us: float, launches: str = "overlapping") -> Record:
    facts = {"bar": "decode", "launches": launches}
    return timed(None, us, problem=model.as_dict(), schedule=None, experiment="step_bars", clock="cold", metrics=facts)


def test_the_simulated_chip_predicts_every_decode_step() -> None:
    answer = runner.answer("step_bars", ["part=formats"], "sim", "h200", record=False)
    assert len(answer.records) == len(PARTS["formats"])
    assert all(r.predicted_us and r.us is None for r in answer.records)
    assert answer.verdict.passed is None
    assert {row.simulated for row in answer.rows} == {r.predicted_us for r in answer.records}


@pytest.mark.parametrize(("us", "passed"), [(690.0, True), (691.0, False)])
def test_a_bar_may_be_a_time(us: float, passed: bool) -> None:
    model = replace(LLAMA_3_1B, batch=1, context=160)
    found = step_bars.verdict([stepped(model, us), stepped(model, 1.0, "plain")], Archive(()))
    assert found.passed is passed
    assert f"takes {us / 1000:.2f} ms (bar 0.69)" in found.sentence


def test_a_bar_may_be_a_rate_of_operations() -> None:
    model = replace(LLAMA_3_8B, phase=PREFILL, context=2048)
    limit = model.flops / 600e6
    assert step_bars.verdict([stepped(model, limit)], Archive(())).passed is True
    assert step_bars.verdict([stepped(model, 1.01 * limit)], Archive(())).passed is False


def test_a_bar_may_be_the_time_of_the_bytes_and_some_a_layer() -> None:
    model = replace(LLAMA_3_8B, batch=1, context=2048)
    limit = model.streamed_bytes / 4.37e12 * 1e6 + 7.5 * 32
    assert step_bars.verdict([stepped(model, limit)], Archive(())).passed is True
    assert step_bars.verdict([stepped(model, 1.01 * limit)], Archive(())).passed is False


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(InputError, match=r"part is decode, .*, generate, or some of them joined by \+; got 'all'"):
        step_bars.Options("decode+all")


@pytest.mark.parametrize(
    ("facts", "passed"),
    [({}, True), ({"tokens_per_s": 1799.0}, False), ({"host_us": 61.0}, False), ({"allocated_bytes": 512}, False)],
)
def test_a_generation_has_bars_of_its_own(facts: dict[str, float], passed: bool) -> None:
    usual = {"bar": "generate", "model": "a model", "settings": "", "tokens_per_s": 1800.0, "host_us": 60.0}
    record = timed(
        None,
        555.0,
        problem=None,
        schedule=None,
        experiment="step_bars",
        metrics={**usual, "allocated_bytes": 0, **facts},
    )
    found = step_bars.verdict([record], Archive(()))
    assert found.passed is passed
    assert "a model, greedy makes 1," in found.sentence
    assert [row.case for row in step_bars.rows([record], Archive(()))] == ["a model, greedy"]
    assert "a model, greedy" in step_bars.table(
        Archive((record, stepped(replace(LLAMA_3_1B, batch=1, context=160), 690.0)))
    )


def test_nothing_is_tuned_or_spoken_on_the_simulated_chip() -> None:
    answer = runner.answer("step_bars", ["part=small+large", "tune=9"], "sim", "h200", record=False)
    assert len(answer.records) == len(PARTS["small"]) + len(PARTS["large"])
    assert runner.answer("step_bars", ["part=generate"], "sim", "h200", record=False).records == ()


def test_only_some_steps_of_a_part() -> None:
    assert [model.batch for _, model in step_bars.Options("decode", only="batch 16").steps] == [16, 16]
    assert [model.weights for _, model in step_bars.Options("decode+formats", only="in fp8").steps] == ["fp8"]
    with pytest.raises(InputError, match="no step of part=decode has 'int5' in its name"):
        step_bars.Options("decode", only="int5")
