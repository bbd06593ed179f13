"""Questions about whole steps: what is looked up beside them, and verdicts that follow the numbers."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import experiments
from experiments.bars import loading
from experiments.questions import first_and_later, quality, step_machines
from experiments.questions.steps import step_of, with_times
from experiments.running.scoring import TEXT, compared, log_probabilities
from lab.problems import MODELS
from lab.record import Archive, Record
from sim.errors import InputError
from sim.formats import decode, encode
from tests.experiments.examples import NOTHING, SMALL


def on_card(record: Record, us: float, **changes: object) -> Record:
    return msgspec.structs.replace(record, on="gpu", card="a card", us=us, samples_us=[us], time="2099", **changes)


def test_prefill_fills_the_tensor_cores_and_decode_the_bus() -> None:
    records = experiments.run("step_machines", model="llama-3-8b").records
    bills = [step_machines.bills_us(r) for r in records]
    assert bills[0]["tensor cores, of the peak"] > 5 * bills[0]["HBM, of its rate"]
    assert bills[1]["HBM, of its rate"] > 100 * bills[1]["tensor cores, of the peak"]
    assert step_machines.verdict(records, NOTHING).passed is None, "a prediction proves nothing"
    timed = Archive(tuple(on_card(r, 2 * max(bill.values())) for r, bill in zip(records, bills, strict=True)))
    found = step_machines.verdict(records, timed)
    assert found.passed
    assert "prefill uses 50.0% of the tensor cores' peak" in found.sentence[0].lower() + found.sentence[1:]
    shares = {(row.case, row.quantity): row.measured for row in step_machines.rows(records, timed) if row.percent}
    assert shares["decode, 2,048 tokens", "HBM, of its rate"] == pytest.approx(0.5)


def test_only_overlapping_steps_of_the_same_problem_and_machine_are_beside_a_step() -> None:
    records = experiments.run("first_and_later", **SMALL["first_and_later"]).records
    right = on_card(records[0], 1.0)
    wrong = [
        on_card(records[0], 2.0, machine="h200"),
        on_card(records[0], 3.0, metrics={"launches": "plain"}),
        on_card(records[0], 4.0, kernel="peer:torch_compile"),
    ]
    found = with_times(records, Archive((*wrong, right, *wrong)))
    assert [timed.us if timed else None for _, timed in found] == [1.0, *[None] * (len(records) - 1)]


def test_growth_is_told_from_what_was_measured_or_from_predictions() -> None:
    records = experiments.run("first_and_later", **SMALL["first_and_later"]).records
    assert "a later token" in first_and_later.verdict(records, NOTHING).sentence
    assert first_and_later.verdict(records, NOTHING).sentence.count("(predicted)") == 2
    timed = Archive(tuple(on_card(r, 10.0 if step_of(r).context == 128 else 30.0) for r in records))
    said = first_and_later.verdict(records, timed).sentence
    assert said.count("3 times as long at 4 times the tokens (measured)") == 2
    with pytest.raises(InputError, match="shortest, longest, rounds and seconds are at least 1, in order"):
        first_and_later.Options(shortest=9, longest=8)


def test_quality_of_a_tiny_model(tmp_path: Path) -> None:
    from tests.lab.inference import tiny  # skips where the extra `model` is missing

    (record,) = experiments.run("quality", model=str(tiny.write(tmp_path / "tiny.gguf")), tokens=48).records
    m = record.metrics
    assert m["tokens"] == 48
    assert record.check.passed == (m["error"] <= 1 and not m["disputed"])
    assert m["error"] > 0
    assert 0 < m["divergence_nats"] <= m["worst_divergence_nats"] < 0.1
    assert abs(m["perplexity"] / m["reference_perplexity"] - 1) < 0.05
    with pytest.raises(InputError, match="tokens are 2 to 2,048 and seconds at least 1; got 1 and 300"):
        experiments.run("quality", tokens=1)


def test_loading_onto_the_simulated_chip_takes_little_more_than_the_file() -> None:
    pytest.importorskip("safetensors", reason="reading folders needs the extra `model`")
    found = experiments.run("loading", times=1)
    (record,) = found.records
    m = record.metrics
    assert m["file_bytes"] == pytest.approx(2 * MODELS["smollm2-135m"].parameters, rel=0.001)
    assert m["host_bytes"] <= loading.MEMORY * m["file_bytes"]
    assert found.passed is None, "times of the simulated chip decide nothing"
    for changes, held in (
        ({"load_s": 1.1 * m["copy_s"]}, True),
        ({"load_s": 1.3 * m["copy_s"]}, False),
        ({"load_s": m["copy_s"], "host_bytes": 2 * m["file_bytes"]}, False),
    ):
        timed = on_card(record, 1.0, metrics={**m, **changes})
        assert loading.verdict([timed], NOTHING).passed is held


def test_the_verdict_on_quality() -> None:
    (record,) = (on_card(r, 1.0) for r in experiments.run("machines").records[:1])
    good = {"model": "m", "tokens": 9, "perplexity": 20.0, "reference_perplexity": 20.05, "disputed": 0}
    for changes, held in (({}, True), ({"perplexity": 20.2}, False), ({"disputed": 1}, False)):
        found = quality.verdict([msgspec.structs.replace(record, metrics={**good, **changes})], NOTHING)
        assert found.passed is held


@given(seed=st.integers(0, 99))
def test_what_is_compared_is_by_the_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    expected = rng.standard_normal((7, 50)).astype(np.float32) * 4
    tokens = [int(t) for t in rng.integers(0, 50, 7)]
    same = compared(expected, expected, tokens, 2)
    assert (same["divergence_nats"], same["same_likeliest"], same["error"], same["disputed"]) == (0, 1, 0, 0)
    assert same["perplexity"] == same["reference_perplexity"]
    p = np.exp(log_probabilities(expected.astype(float)))
    np.testing.assert_allclose(p.sum(-1), 1)
    chances = [p[i, tokens[i + 1]] for i in range(6)]
    assert same["perplexity"] == pytest.approx(np.prod(chances) ** (-1 / 6))
    near = decode(encode(expected, "bf16"), "bf16")
    assert 0 < compared(expected, near, tokens, 2)["error"] < 1
    wrong = expected.copy()
    wrong[3] = -wrong[3]
    assert compared(expected, wrong, tokens, 2)["error"] > 1
    sure = expected.copy()
    sure[:, 5] += 40
    assert compared(sure, expected, tokens, 2)["disputed"] == (expected.argmax(-1) != 5).sum()


def test_the_text_is_long_enough() -> None:
    assert len(TEXT.split()) > 350
