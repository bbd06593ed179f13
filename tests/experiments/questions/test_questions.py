"""The article's questions: their claims hold, their verdicts follow the numbers."""

import msgspec
import pytest

import experiments
from experiments import runner
from experiments.lookup import layer_of
from experiments.questions import (
    batching,
    ceilings,
    decode_floor,
    fp8_error,
    gemv_ladder,
    kv_cache,
    machines,
    quantization,
    two_machines,
    wrong_machine,
)
from lab.record import Archive
from sim.errors import InputError
from sim.machine import H100
from tests.experiments.examples import NOTHING, SMALL, measured


def test_the_ridges_of_the_article_and_where_they_do_not_climb() -> None:
    records = experiments.run("machines").records
    ridges = {(r.machine, r.metrics["unit"]): r.metrics["ridge_flop_per_byte"] for r in records}
    assert round(ridges["a100", "fp32"]) == 13
    assert round(ridges["a100", "bf16"]) == 201
    assert round(ridges["h100", "bf16"]) == 295
    assert ridges["b200", "bf16"] < ridges["h100", "bf16"]
    found = machines.verdict(records, NOTHING)
    assert found.passed
    assert "it does not climb with every chip: it falls from H100 to H200" in found.sentence
    rising = [
        msgspec.structs.replace(r, metrics={**r.metrics, "ridge_flop_per_byte": 300.0 + i})
        for i, r in enumerate(records)
    ]
    assert "it climbs with every chip" in machines.verdict(rising, NOTHING).sentence
    assert not machines.verdict(rising, NOTHING).passed


def test_the_cache_of_the_article() -> None:
    records = experiments.run("kv_cache").records
    sizes = {(r.metrics["variant"], r.problem["kv"]): r.metrics["cache_bytes"] for r in records if r.problem}
    assert sizes["MHA", "bf16"] == 4 * 32 * 8192 * 4096
    assert sizes["GQA", "bf16"] * 4 == sizes["MHA", "fp8"] * 2 == sizes["MHA", "bf16"]
    assert kv_cache.verdict(records, NOTHING).passed
    wrong = [msgspec.structs.replace(r, metrics={**r.metrics, "cache_bytes": 1}) for r in records]
    assert not kv_cache.verdict(wrong, NOTHING).passed


def test_the_floors_of_all_models_that_were_run_are_in_the_table_the_newest_run_of_each() -> None:
    runs = [
        msgspec.structs.replace(record, run=run, on="sim", metrics={**record.metrics, "weights_bytes": nbytes})
        for run, model, nbytes in (("1", "llama-2-7b", 1e9), ("2", "llama-3-8b", 2e9), ("3", "llama-2-7b", 3e9))
        for record in experiments.run("decode_floor", model=model, weights="fp8").records
    ]
    lines = [line for line in decode_floor.table(Archive(tuple(runs))).splitlines() if "weights, GB" in line]
    assert [line.split("|")[1].strip() + line.split("|")[3] for line in lines] == ["llama-2-7b 3 ", "llama-3-8b 2 "]
    assert "No records yet" in decode_floor.table(NOTHING)


def test_the_floor_of_the_article() -> None:
    records = experiments.run("decode_floor", weights="fp8").records  # no kernel reads fp8 yet: the closed form alone
    assert len(records) == 1
    bf16 = msgspec.structs.replace(
        records[0], metrics={**records[0].metrics, "weights_bytes": 26_031_728_640, "streamed_bytes": 25_704_048_640}
    )
    found = decode_floor.verdict([bf16], NOTHING)
    assert "26.0 GB of llama-2-13b take 7.8 ms at the data sheet's 3.35 TB/s, so at most 129 tokens/s" in found.sentence
    reads = [
        measured(
            msgspec.structs.replace(
                bf16, experiment="ceilings", metrics={"what": "read", "nbytes": n, "bytes_per_s": b}
            ),
            1,
        )
        for n, b in ((2**21, 9e12), (2**31, 3.0e12))  # the small array came from a cache
    ]
    assert "at the 3 TB/s read on a card" in decode_floor.verdict([bf16], Archive(tuple(reads))).sentence
    assert ceilings.read_rate(Archive(tuple(reads)), "h100")[0] == 3.0e12


def test_fp8_errors_are_those_of_the_check() -> None:
    records = experiments.run("fp8_error", **SMALL["fp8_error"]).records
    problems = [r.problem for r in records if r.problem]
    assert [(p["k"], p.get("accumulate", "fast")) for p in problems] == [
        (k, accumulate) for k in (512, 1024) for accumulate in ("fast", "float32")
    ]
    rounding = fp8_error.rounding_alone("bf16")
    assert all(float(r.metrics["relative_error"] or 0) == pytest.approx(rounding, rel=0.1) for r in records)
    assert fp8_error.verdict(records, NOTHING).passed

    def on_gpu(errors: tuple[float, ...]) -> Archive:
        return Archive(
            tuple(
                measured(msgspec.structs.replace(r, metrics={"relative_error": e}), 1)
                for r, e in zip(records, errors, strict=True)
            )
        )

    found = fp8_error.verdict(records, on_gpu((0.002, 0.0017, 0.004, 0.0017)))
    assert found.passed
    assert "in the tensor cores, by 2.00e-03 at k = 512 and 4.00e-03 at k = 1,024 (measured)" in found.sentence
    assert not fp8_error.verdict(records, on_gpu((0.002, 0.0017, 0.004, 0.0025))).passed


def test_two_machines_follows_the_times() -> None:
    records = experiments.run("two_machines", **SMALL["two_machines"]).records
    assert [r.problem["m"] for r in records if r.problem] == [64, 1, 1, 64]
    own = Archive(tuple(measured(r, us) for r, us in zip(records, (10, 5, 8, 50), strict=True)))
    found = two_machines.verdict(records, own)
    assert found.passed
    assert "gemv_vectorized takes 5.00 times as long" in found.sentence
    assert "gemm_cluster takes 1.60 times as long" in found.sentence
    assert "(measured): each phase needs a kernel of its own." in found.sentence
    equal = Archive(tuple(measured(r, 5) for r in records))
    assert two_machines.verdict(records, equal).sentence.endswith("one kernel serves both.")
    assert not two_machines.verdict(records, equal).passed
    partly = Archive(own.records[:3])
    assert "(predicted)" in two_machines.verdict(records, partly).sentence


def test_the_wrong_machine_follows_times_and_counts() -> None:
    records = experiments.run("wrong_machine", **SMALL["wrong_machine"]).records
    assert [(r.kernel, (r.problem or {})["m"]) for r in records] == [
        ("gemm_split_k", 64),
        ("gemv_split_k", 1),
        ("gemm_split_k", 1),
        ("gemv_split_k", 64),
    ]
    own = Archive(tuple(measured(r, us) for r, us in zip(records, (10, 5, 8, 50), strict=True)))
    found = wrong_machine.verdict(records, own)
    assert found.passed
    assert "At m = 1 gemm_split_k takes 1.60 times as long (" in found.sentence
    assert "it issues 64 FLOPs for each useful one" in found.sentence
    assert "at m = 64 gemv_split_k takes 5.00 times as long (" in found.sentence
    assert found.sentence.endswith("times the bytes from L2 (measured).")
    rows = {(row.case, row.quantity): row for row in wrong_machine.rows(records, own)}
    assert rows["gemv_split_k, m = 64", "time over that of gemm_split_k"].measured == 5.0
    assert rows["gemm_split_k, m = 1", "FLOP issued for each useful one"].theory == 64.0
    assert wrong_machine.verdict(records, NOTHING).sentence.endswith("(predicted).")
    equal = Archive(tuple(measured(r, 5) for r in records))
    assert not wrong_machine.verdict(records, equal).passed
    with pytest.raises(InputError, match="needs m of at least 2 and two kernels; m = 1"):
        wrong_machine.Options(m=1)


def test_the_gemv_ladder_follows_times_and_peers() -> None:
    records = experiments.run("gemv_ladder", **SMALL["gemv_ladder"]).records
    names = [r.kernel for r in records]
    assert names[:2] == ["gemv_naive", "gemv_coalesced"]
    assert {"gemv_vectorized", "gemv_streamed", "gemv_split_k"} < set(names)
    past = Archive(
        tuple(
            msgspec.structs.replace(timed, kernel=kernel, us=us, run=f"run of {r.kernel}")
            for number, r in enumerate(records)
            for timed in [measured(r, 10.0 - number)]
            for kernel, us in ((r.kernel, timed.us), ("peer:cublas", 8.0))
        )
    )
    found = gemv_ladder.verdict(records, past)
    assert found.passed
    best = 11.0 - len(records)
    assert "1024x1024 climbs from 10 us (gemv_naive) to " in found.sentence
    assert f"and {8.0 / best:.1%} of cuBLAS (measured); simulated bytes equal theory." in found.sentence
    rows = {(row.case, row.quantity): row.measured for row in gemv_ladder.rows(records, past)}
    assert rows["1024x1024: gemv_coalesced", "time of the rung below over its own"] == pytest.approx(10 / 9)
    assert rows["1024x1024: gemv_coalesced", "of cuBLAS"] == pytest.approx(8 / 9)
    moved = 2 * 1024**2 + 2 * 2 * 1024  # bytes of w, x and y
    assert rows["1024x1024: gemv_naive", "of HBM's peak"] == pytest.approx(moved / 10e-6 / H100.hbm_bandwidth)
    table = gemv_ladder.table(Archive((*records, *past.records)))
    assert table.count("| 1024x1024 | `") == len(records)
    assert f"{8 / 9:.1%}" in next(line for line in table.splitlines() if "gemv_coalesced" in line)
    assert "(predicted)" in gemv_ladder.verdict(records, NOTHING).sentence
    wrong = [msgspec.structs.replace(r, simulated={"l2_to_sm_bytes": 1}) for r in records]
    assert not gemv_ladder.verdict(wrong, NOTHING).passed
    with pytest.raises(InputError, match=r"only is all, 1024x1024, 4096x4096, .*; got '7x7'"):
        gemv_ladder.Options(only="7x7")


def test_a_ladder_is_drawn_of_the_rungs_timed_last_and_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemv_ladder, "SHAPES", ((1024, 1024),))
    records = experiments.run("gemv_ladder", **SMALL["gemv_ladder"]).records
    assert gemv_ladder.pictures(Archive(tuple(records))) == {}  # none is timed
    past = Archive(
        tuple(
            msgspec.structs.replace(timed, kernel=kernel, us=us, run=f"run of {r.kernel}", commit=commit)
            for commit, factor in (("older", 3.0), ("newer", 1.0))
            for r in records
            for timed in [measured(r, 100.0 * factor)]
            for kernel, us in ((r.kernel, timed.us), ("peer:cublas", 50.0))
        )
    )
    bars = gemv_ladder.pictures(past)["gemv_ladder"].bars
    assert [bar.label for bar in bars] == [*(r.kernel for r in records), "cuBLAS"]
    rates = [value for bar in bars for _, value in bar.parts]
    assert rates == pytest.approx([rates[0]] * len(records) + [2 * rates[0]])
    assert rates[0] == pytest.approx((2 * 1024**2 + 2 * 2 * 1024) / 100.0 / 1e6)


@pytest.mark.parametrize(
    ("name", "words"), [("gemv_ladder", {"only": "1024x1024"}), ("two_machines", {"d": 256, "m": 64})]
)
def test_no_other_card_is_called_measured(name: str, words: dict) -> None:
    kernels = {} if name == "gemv_ladder" else {"gemm": "gemm_mma_sync"}  # runs on an A100 too
    mine = experiments.run(name, machine="a100", **words, **kernels).records
    past = Archive(tuple(measured(msgspec.structs.replace(r, machine="h100"), 1.0) for r in mine))
    answer = runner.conclude(name, mine, past)
    assert [row for row in answer.rows if row.measured is not None or row.source] == []
    assert "(predicted)" in answer.verdict.sentence
    own = Archive(tuple(measured(r, 1.0) for r in mine))
    assert any(row.measured for row in runner.conclude(name, mine, own).rows)


def test_batching_finds_where_each_roofline_bends() -> None:
    (first,) = experiments.run("batching", d=256, most=1, formats="bf16").records
    at = lambda m, us: msgspec.structs.replace(  # noqa: E731
        first, problem={**(first.problem or {}), "m": m, "n": 4096, "k": 4096}, predicted_us=us, theory=None
    )
    records = [at(1, 10.0), at(256, 11.0), at(1024, 32.0)]
    found = batching.verdict(records, NOTHING)
    assert found.passed is None  # predictions alone
    assert found.sentence == (
        "bf16 bends at m = 346 by the data sheet, 320 predicted (the ridge of bf16 is 295 FLOP/B)."
    )
    timed = Archive(tuple(measured(r, 2 * (r.predicted_us or 0.0)) for r in records))
    assert "320 predicted, 320 measured" in batching.verdict(records, timed).sentence
    late = Archive(tuple(measured(r, us) for r, us in zip(records, (10.0, 10.0, 11.0), strict=True)))
    assert not batching.verdict(records, late).passed
    rows = {(row.case, row.quantity): row.measured for row in batching.rows(records, timed)}
    assert rows["bf16, m = 1, memory", "weights, TB/s"] == pytest.approx(2 * 4096**2 / 20 / 1e6)
    with pytest.raises(InputError, match=r"formats are bf16, fp8, .*; got 'int8'"):
        batching.Options(formats="bf16+int8")


def test_quantization_compares_speed_with_bytes() -> None:
    records = experiments.run("quantization", widest=4096, formats="bf16+fp8").records
    wide, narrow = records
    past = Archive((measured(wide, 12.0), measured(narrow, 7.0)))
    found = quantization.verdict(records, past)
    fewer = layer_of(wide).bytes["weights"] / layer_of(narrow).bytes["weights"]
    assert f"fp8 {12 / 7 / fewer:.2f}; all times lie about " in found.sentence
    assert found.passed == (12 / 7 / fewer >= quantization.LINEAR)
    rows = {(row.case, row.quantity): row for row in quantization.rows(records, past)}
    ratio = rows["4,096 x 4,096, fp8", "times faster; theory: times fewer bytes"]
    assert (ratio.theory, ratio.measured) == (pytest.approx(fewer), pytest.approx(12 / 7))
