"""Experiments: their claims hold, their verdicts follow the numbers, their records are whole even when interrupted."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

import experiments
from experiments import (
    _rows,
    batching,
    ceilings,
    decode_bars,
    decode_chain,
    decode_floor,
    fp8_error,
    gemv_ladder,
    kv_cache,
    machines,
    quantization,
    runner,
    two_machines,
    wrong_machine,
)
from experiments._catalog import names, questions
from experiments._chips import Chip
from experiments._formats import in_format
from experiments._rows import Row, Verdict, layer_of
from experiments._simulation import affordable_part, simulate
from lab import catalog, record
from lab.problems import Linear
from lab.record import Archive, Checked, Record, provenance
from sim.counts import Counts
from sim.errors import InputError
from sim.machine import H100

SMALL = {
    "two_machines": {"d": 256, "m": 64},
    "batching": {"d": 256, "most": 8},
    "quantization": {"widest": 256},
    "fp8_error": {"n": 128, "most": 1024},
    "gemm_ladder": {"m": 256, "n": 256, "k": 256},
    "gemm_bars": {"part": "ragged"},
    "gemv_ladder": {"only": "1024x1024"},
    "wrong_machine": {"n": 256, "k": 256, "m": 64},
    "decode_chain": {"d": 256},
    "decode_bars": {"shape": 0, "most": 2},
}
NOTHING = Archive(())


def measured(like: Record, us: float, clock: str = "graph") -> Record:
    """A GPU's record of the same kernel and problem."""
    changes = {"on": "gpu", "card": "a card", "us": us, "clock": clock, "samples_us": [us], "time": "2099"}
    return msgspec.structs.replace(like, **changes)


def test_they_are_found_by_the_question_they_ask() -> None:
    assert names() == (
        "batching",
        "ceilings",
        "decode_bars",
        "decode_chain",
        "decode_floor",
        "fp8_error",
        "gemm_bars",
        "gemm_ladder",
        "gemv_ladder",
        "kv_cache",
        "machines",
        "quantization",
        "two_machines",
        "wrong_machine",
    )
    assert all(question == runner.get(name).QUESTION for name, question in questions().items())
    with pytest.raises(InputError, match="unknown experiment 'peers'; known experiments: batching"):
        runner.get("peers")


@pytest.mark.parametrize("name", ["ceilings", "kv_cache", "machines", *SMALL])
def test_from_a_script(name: str) -> None:
    records = experiments.run(name, on="sim", **SMALL.get(name, {}))
    assert records
    assert len({r.run for r in records}) == 1
    assert all(r.experiment == name and r.on == "sim" and r.us is None for r in records)
    assert all(r.check.passed for r in records if r.check)
    answer = runner.conclude(name, records, NOTHING)
    assert answer.rows
    assert answer.verdict.sentence.endswith(".")
    assert answer.verdict.sentence.count("\n") == 0


def test_the_ridges_of_the_article_and_where_they_do_not_climb() -> None:
    records = experiments.run("machines")
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
    records = experiments.run("kv_cache")
    sizes = {(r.metrics["variant"], r.problem["kv"]): r.metrics["cache_bytes"] for r in records if r.problem}
    assert sizes["MHA", "bf16"] == 4 * 32 * 8192 * 4096
    assert sizes["GQA", "bf16"] * 4 == sizes["MHA", "fp8"] * 2 == sizes["MHA", "bf16"]
    assert kv_cache.verdict(records, NOTHING).passed
    wrong = [msgspec.structs.replace(r, metrics={**r.metrics, "cache_bytes": 1}) for r in records]
    assert not kv_cache.verdict(wrong, NOTHING).passed


def test_the_floor_of_the_article() -> None:
    records = experiments.run("decode_floor", weights="fp8")  # no kernel reads fp8 yet: the closed form alone
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
    records = experiments.run("fp8_error", **SMALL["fp8_error"])
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
    records = experiments.run("two_machines", **SMALL["two_machines"])
    assert [r.problem["m"] for r in records if r.problem] == [64, 1, 1, 64]
    own = Archive(tuple(measured(r, us) for r, us in zip(records, (10, 5, 8, 50), strict=True)))
    found = two_machines.verdict(records, own)
    assert found.passed
    assert "gemv_vectorized takes 5.00 times as long" in found.sentence
    assert "gemm_wgmma takes 1.60 times as long" in found.sentence
    assert "(measured): each phase needs a kernel of its own." in found.sentence
    equal = Archive(tuple(measured(r, 5) for r in records))
    assert two_machines.verdict(records, equal).sentence.endswith("one kernel serves both.")
    assert not two_machines.verdict(records, equal).passed
    partly = Archive(own.records[:3])
    assert "(predicted)" in two_machines.verdict(records, partly).sentence


def test_the_wrong_machine_follows_times_and_counts() -> None:
    records = experiments.run("wrong_machine", **SMALL["wrong_machine"])
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
    records = experiments.run("gemv_ladder", **SMALL["gemv_ladder"])
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
    assert rows["1024x1024: gemv_coalesced", "cuBLAS's time over its own"] == pytest.approx(8 / 9)
    moved = 2 * 1024**2 + 2 * 2 * 1024  # bytes of w, x and y
    assert rows["1024x1024: gemv_naive", "of HBM's peak"] == pytest.approx(moved / 10e-6 / H100.hbm_bandwidth)
    assert "(predicted)" in gemv_ladder.verdict(records, NOTHING).sentence
    wrong = [msgspec.structs.replace(r, simulated={"l2_to_sm_bytes": 1}) for r in records]
    assert not gemv_ladder.verdict(wrong, NOTHING).passed
    with pytest.raises(InputError, match=r"only is all, 1024x1024, 4096x4096, .*; got '7x7'"):
        gemv_ladder.Options(only="7x7")


def test_batching_finds_where_each_roofline_bends() -> None:
    (first,) = experiments.run("batching", d=256, most=1, formats="bf16")
    at = lambda m, us: msgspec.structs.replace(  # noqa: E731
        first, problem={**(first.problem or {}), "m": m, "n": 4096, "k": 4096}, predicted_us=us
    )
    records = [at(1, 10.0), at(256, 11.0), at(1024, 32.0)]
    found = batching.verdict(records, NOTHING)
    assert found.passed
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
    records = experiments.run("quantization", widest=4096, formats="bf16+fp8")
    wide, narrow = records
    past = Archive((measured(wide, 12.0), measured(narrow, 7.0)))
    found = quantization.verdict(records, past)
    fewer = layer_of(wide).bytes["weights"] / layer_of(narrow).bytes["weights"]
    assert f"fp8 {12 / 7 / fewer:.2f}; all times lie about " in found.sentence
    assert found.passed == (12 / 7 / fewer >= quantization.LINEAR)
    rows = {(row.case, row.quantity): row for row in quantization.rows(records, past)}
    ratio = rows["4,096 x 4,096, fp8", "times faster; theory: times fewer bytes"]
    assert (ratio.theory, ratio.measured) == (pytest.approx(fewer), pytest.approx(12 / 7))


def cell(m: int, us: float, read: float, peer: float, part: str = "bf16") -> list[Record]:
    """A timed layer with its plain read and a peer, all of one run."""
    problem = in_format(part, Linear(m, 8192, 8192)).as_dict()
    like = Record(
        **{**provenance(), "run": f"{part} {m}"},
        on="gpu",
        machine="h100",
        problem=problem,
        clock="graph",
        metrics={"bar": part},
    )
    schedule: dict[str, int | str] = {"rows": 1}
    return [
        msgspec.structs.replace(like, kernel="gemv_mma", schedule=schedule, us=us, samples_us=[us]),
        msgspec.structs.replace(like, kernel="peer:read", us=read, samples_us=[read]),
        msgspec.structs.replace(like, kernel="peer:cublas", us=peer, samples_us=[peer]),
    ]


def test_decode_is_held_to_the_read_the_peers_and_more_tokens() -> None:
    good = [*cell(1, 45.0, 43.3, 47.0), *cell(16, 45.2, 43.3, 47.5), *cell(64, 47.0, 43.3, 48.7)]
    assert decode_bars.verdict(good, NOTHING).passed
    for bad, says in (
        (cell(8, 45.4, 43.3, 47.0), "takes 1.002 times what the read allows"),
        (cell(8, 45.0, 43.3, 44.0), "takes 1.023 times what peer:cublas allows"),
        (cell(128, 50.0, 43.3, 50.4), "takes 1.023 times what peer:cublas allows"),
    ):
        found = decode_bars.verdict(good + bad, NOTHING)
        assert not found.passed
        assert (
            f"3 of 4 layers stand within their limits; the farthest, bf16, m = {layer_of(bad[0]).m}" in found.sentence
        )
        assert says in found.sentence
    cliff = decode_bars.verdict([*cell(32, 46.0, 43.3, 60.0), *cell(64, 43.0, 43.3, 60.0)], NOTHING)
    assert not cliff.passed
    assert "1 take longer than with more tokens" in cliff.sentence


def test_a_chain_is_held_to_its_bytes_at_the_read_rate() -> None:
    record = experiments.run("decode_chain", d=256)[0]
    floor = 8 * 2 * 256 * 256 / decode_chain.READ_RATE * 1e6
    for times, passed in ((1.05, True), (1.07, False)):
        timed = msgspec.structs.replace(measured(record, times * floor), metrics={"layers": 8, "launches": "dependent"})
        plain = msgspec.structs.replace(timed, us=9 * floor, metrics={"layers": 8, "launches": "plain"})
        found = decode_chain.verdict([timed, plain], NOTHING)
        assert found.passed == passed
        assert f"bf16 takes {times:.3f} times its bytes at 3.18 TB/s" in found.sentence


def test_rows_show_the_fastest_schedule_of_the_newest_run_and_its_peers() -> None:
    mine = experiments.run("two_machines", **SMALL["two_machines"])[0]
    past = Archive(
        (
            measured(msgspec.structs.replace(mine, run="old"), 1.0),
            measured(msgspec.structs.replace(mine, run="new"), 7.0),
            measured(msgspec.structs.replace(mine, run="new"), 6.0),
            measured(msgspec.structs.replace(mine, run="new", kernel="peer:cublas"), 5.0),
            measured(msgspec.structs.replace(mine, run="old", kernel="peer:cublas"), 4.0),
            msgspec.structs.replace(mine, on="gpu", time="2100", counters={"hbm_read_bytes": 2e6}),
        )
    )
    rows = {row.quantity: row for row in _rows.kernel_rows(mine, past, "case")}
    assert rows["time in a graph, us"].measured == 6.0
    assert rows["peer:cublas in a graph, us"].measured == 5.0
    assert rows["HBM read, MB"].measured == 2.0
    assert rows["HBM read, MB"].theory == rows["HBM read, MB"].simulated == (mine.theory or {})["hbm_read_bytes"] / 1e6
    assert rows["time in a graph, us"].source.startswith("a card, ")


@pytest.mark.parametrize("m", [1, 100, 3000])
def test_a_part_is_affordable_and_keeps_the_ragged_edge(m: int) -> None:
    problem = Linear(m, 20_011, 8192)
    part = affordable_part(problem, Counts(mma_flops=0), budget_s=1.0)
    assert isinstance(part, Linear)
    assert part.k == problem.k
    assert part.flops <= 1e9 or (part.m <= 256 and part.n <= 256)
    assert (part.n - problem.n) % 128 == 0
    assert part.m == problem.m or (part.m - problem.m) % 128 == 0
    small = Linear(3, 5, 8)
    assert affordable_part(small, Counts(mma_flops=0), budget_s=1.0) == small


def test_a_part_is_checked_with_the_counts_of_the_whole() -> None:
    kernel = catalog.get("gemv_vectorized")
    problem = Linear(2, 4000, 512)
    found = simulate(kernel, problem, kernel.best_guess(problem, H100), H100, budget_s=0.001)
    assert found.passed
    assert found.part != problem
    assert found.simulated.flops == problem.flops
    assert found.check.rows_checked == found.part.m


@dataclass(frozen=True)
class Slow:
    """Options of the experiment below."""


def slow_experiment(seconds: float) -> ModuleType:
    """An experiment that takes its time after two records."""
    module = ModuleType("slow")

    def measure(_: Slow, chip: Chip) -> Iterator[Record]:
        yield chip.closed_form({"n": 1})
        yield chip.closed_form({"n": 2})
        print("ready", flush=True)
        time.sleep(seconds)
        yield chip.closed_form({"n": 3})

    vars(module).update(
        QUESTION="How long?",
        Options=Slow,
        measure=measure,
        rows=lambda *_: iter([Row("case", "n", None, None, None)]),
        verdict=lambda *_: Verdict(True, "Long."),
    )
    return module


def test_an_interrupted_run_leaves_whole_records(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from experiments import runner
from experiments.cli import run_command
from tests.experiments.test_experiments import slow_experiment
runner.get = lambda name: slow_experiment(60)
runner.folder = lambda: Path({str(tmp_path)!r})
sys.exit(run_command(["run", "slow", "--record"]))
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=record.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (130, "lab: interrupted\n")
    found = record.read([tmp_path / "slow.jsonl"])
    assert [r.metrics["n"] for r in found.records] == [1, 2]
    assert found.complaints == ()


def test_a_simulated_run_keeps_no_records_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "folder", lambda: tmp_path)
    experiments.run("kv_cache")
    assert list(tmp_path.iterdir()) == []
    written = experiments.run("kv_cache", record=True)
    lines = (tmp_path / "kv_cache.jsonl").read_text().splitlines()
    assert [json.loads(line)["metrics"] for line in lines] == [r.metrics for r in written]


def test_a_failed_check_fails_the_run() -> None:
    failed = Record(**provenance(), on="sim", machine="h100", metrics={"variant": "MHA"}, check=Checked(False, 2.0))
    answer = runner.Answer("x", "?", (failed,), (), Verdict(True, "Yes."))
    assert not answer.passed
