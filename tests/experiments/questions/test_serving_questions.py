"""Serving experiments on predicted times: what they claim follows from their own records."""

from dataclasses import replace

import pytest
from msgspec import structs

from experiments import runner
from experiments.bars import serving_bars
from experiments.questions import disaggregation
from experiments.served import cases, figure
from lab.record import Archive, Record, provenance
from sim.errors import InputError


@pytest.fixture(scope="module")
def load() -> tuple[Record, ...]:
    return runner.run("serving_loop", machine="h200", requests=12, rates="20").records


def test_continuous_batches_are_fuller_and_faster_than_static_ones() -> None:
    found = runner.run("continuous_batching", machine="h200", requests=24, rows=8)
    static, continuous = found.records
    for name in ("output_throughput", "mean_rows"):
        assert (figure(continuous, name) or 0.0) > (figure(static, name) or 0.0)
    assert found.passed is None
    assert "(predicted)" in found.verdict.sentence


def test_pages_hold_more_than_slabs_and_waste_less_than_a_page_each() -> None:
    found = {(r.machine, r.metrics["kind"]): r for r in runner.run("paged_capacity", longest=4096).records}
    for card in ("h100", "h200"):
        slabs, pages = found[card, "slabs"], found[card, "pages"]
        assert (figure(pages, "sequences") or 0) > 2 * (figure(slabs, "sequences") or 0)
        assert (figure(pages, "kv_waste") or 1.0) < 0.1 < (figure(slabs, "kv_waste") or 0.0)


def test_a_loop_that_was_measured_is_judged_beside_its_prediction(load: tuple[Record, ...]) -> None:
    (told,) = load
    links = {f"{prefix}{name}": told.metrics[name] for prefix in ("steps_", "host_") for name in serving_bars.WITHIN}
    metrics = {**told.metrics, "part": "load"}
    told = structs.replace(told, metrics={**told.metrics, **links})
    for factor, passed in ((1.04, True), (1.3, False)):
        slower = {name: factor * float(told.metrics[name]) for name in serving_bars.WITHIN}
        measured = structs.replace(told, on="gpu", card="a card", metrics={**metrics, **slower})
        rows = list(runner.get("serving_loop").rows([told, measured], runner.archive()))
        assert any("and the host as measured" in row.quantity for row in rows)
        assert "%" in runner.get("serving_loop").verdict([told, measured], runner.archive()).sentence
        assert serving_bars.verdict([told, measured], runner.archive()).passed is passed


def test_pictures_show_both_distributions(load: tuple[Record, ...]) -> None:
    experiment = runner.get("serving_loop")
    measured = structs.replace(load[0], on="gpu", card="a card")
    found = experiment.pictures(Archive((load[0], measured)))  # type: ignore[attr-defined]
    assert set(found) == {"serving_ttft", "serving_itl"}
    for file, name in (("serving_ttft", "ttft"), ("serving_itl", "itl")):
        told, seen = found[file].series
        assert (told.mark, seen.mark) == ("predicted", "measured")
        assert told.points == sorted(told.points) == seen.points
        assert (load[0].metrics[f"p50_{name}_ms"], 50.0) in told.points


def test_each_rate_is_told_by_its_newest_run(load: tuple[Record, ...]) -> None:
    def run(name: str, rate: float, ms: float) -> Record:
        metrics = {**load[0].metrics, "case": f"{rate:g} a second", "requests_per_s": rate, "mean_itl_ms": ms}
        return structs.replace(load[0], on="gpu", card="a card", run=name, metrics=metrics)

    told = runner.get("serving_loop").table(Archive((run("a", 8, 3.25), run("b", 16, 4.25), run("c", 16, 5.25))))
    assert "3.25" in told
    assert "5.25" in told
    assert "4.25" not in told


@pytest.mark.parametrize(
    ("part", "metrics", "passed"),
    [
        ("host", {"rows": 64, "host_us": 149.0}, True),
        ("host", {"rows": 256, "host_us": 401.0}, False),
        ("gaps", {"idle_fraction": 0.02}, False),
        ("nano", {"output_throughput": 10_001.0}, True),
        ("nano", {"output_throughput": 9_999.0}, False),
        ("stall", {"budget_ms": 19.5, "max_itl_ms": 21.0, "long_median_ttft_ms": 200.0}, False),
        ("stall", {"budget_ms": 19.5, "max_itl_ms": 19.0, "long_median_ttft_ms": 230.0}, False),
        ("stall", {"budget_ms": 19.5, "max_itl_ms": 19.0, "long_median_ttft_ms": 200.0}, True),
    ],
)
def test_bars_are_held_against_what_was_measured(
    load: tuple[Record, ...], part: str, metrics: dict[str, float], passed: bool
) -> None:
    record = structs.replace(load[0], on="gpu", card="a card", metrics={"case": "it", "part": part, **metrics})
    whole = structs.replace(
        record, metrics={**record.metrics, "case": "whole", "budget_ms": 0.0, "long_median_ttft_ms": 180.0}
    )
    records = [record, whole] if part == "stall" else [record]
    assert serving_bars.verdict(records, runner.archive()).passed is passed


def test_the_knee_is_held_against_what_was_predicted(load: tuple[Record, ...]) -> None:
    told = structs.replace(load[0], metrics={"case": "it", "part": "knee", "output_throughput": 1000.0})
    for throughput, passed in ((960.0, True), (940.0, False)):
        metrics = {**told.metrics, "output_throughput": throughput}
        measured = structs.replace(told, on="gpu", card="a card", metrics=metrics)
        assert serving_bars.verdict([told, measured], runner.archive()).passed is passed


def test_a_job_of_every_part_can_be_made() -> None:
    for part in serving_bars.PARTS:
        for job in serving_bars.jobs(part):
            assert job.facts["part"] == part
            assert replace(serving_bars.Options(), part=part).part == part


def test_schedules_are_looked_for_in_the_steps_of_each_power_of_two_up_to_the_most_rows() -> None:
    rows = [job.problem["batch"] for job in serving_bars.steps("host,small")]
    assert rows == [256, 128, 64, 32, 16, 8, 4, 2, 1]
    both = serving_bars.steps("load,small")  # 64 rows of another model too
    assert sorted(job.problem["batch"] for job in both) == sorted([*rows, 64, 32, 16, 8, 4, 2, 1])
    assert {job.problem["layers"] for job in both if job.problem["batch"] == 64} == {30, 32}
    with pytest.raises(InputError, match="tune at least 0"):
        serving_bars.Options(tune=-1)


def test_what_a_search_found_is_no_loop(load: tuple[Record, ...]) -> None:
    found = structs.replace(load[0], on="gpu", card="a card", metrics={"stage": "final", "tuned": True})
    rows, alone = (list(serving_bars.rows(records, runner.archive())) for records in ([found, *load], load))
    assert rows == alone
    assert "none was measured" in serving_bars.verdict([found, *load], runner.archive()).sentence


def test_a_run_that_was_skipped_hides_none_that_was_measured(load: tuple[Record, ...]) -> None:
    ran = structs.replace(load[0], on="gpu", card="a card")
    late = structs.replace(ran, metrics={"case": ran.metrics["case"], "failure": "skipped: the time box was over"})
    assert cases([ran, late])[str(ran.metrics["case"])].measured == ran
    assert cases([late])[str(ran.metrics["case"])].measured == late


def on_two(setup: str, rate: float, share: float, gap: float = 8.0) -> Record:
    metrics = {"setup": setup, "traffic": "azure-conv", "requests_per_s": rate, "request_throughput": rate}
    metrics |= {"request_goodput": share * rate, "p99_itl_ms": gap, "case": f"{rate}; {setup}"}
    return Record(**provenance(), on="sim", machine="h200", experiment="disaggregation", metrics=metrics)


def test_a_knee_is_the_highest_rate_within_the_limits_and_smooth_answers_have_one_of_their_own() -> None:
    split, whole, *_ = disaggregation.SETUPS
    found = [on_two(split, rate, rate <= 16) for rate in (8.0, 16.0, 24.0)]
    found += [on_two(whole, rate, 0.95 if rate <= 24 else 0.8, gap=19.0) for rate in (8.0, 16.0, 24.0, 32.0)]
    knees = disaggregation.knees(found, "azure-conv")
    assert (knees[split], knees[whole]) == (16.0, 24.0)
    smooth = disaggregation.knees(found, "azure-conv", smooth=True)
    assert (smooth[split], smooth[whole]) == (16.0, 0.0)
    said = disaggregation.verdict(found, runner.archive()).sentence
    assert f"azure-conv: {whole} at 24 a second ({split} 16)" in said
    assert f"azure-conv with gaps below 12 ms: {split} at 16 a second" in said


def test_prefill_on_a_gpu_of_its_own_keeps_gaps_small_and_computes_all_prompts_on_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = {name: disaggregation.SETUPS[name] for name in ("1 prefill + 1 decode", "2 replicas")}
    monkeypatch.setattr(disaggregation, "SETUPS", compared)
    found = runner.run("disaggregation", machine="h200", requests=6, only=disaggregation.STALLS)
    by = {str(r.metrics["setup"]): r for r in found.records}
    split, whole = by["1 prefill + 1 decode"], by["2 replicas"]
    assert (figure(split, "p99_itl_ms") or 0.0) < (figure(whole, "p99_itl_ms") or 0.0)
    assert (figure(split, "p99_ttft_ms") or 0.0) > (figure(whole, "p99_ttft_ms") or 0.0)
    assert 0 < (figure(split, "push_share") or 0.0) < 0.05
    assert (figure(split, "push_exposed_us") or 0.0) < (figure(split, "push_us") or 0.0)
