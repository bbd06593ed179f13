"""lab explain and lab sweep: one problem, a kernel, a model, lists of them, machines side by side."""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import lab
from experiments.cli import run_command
from lab import catalog, record
from lab.kernel import schedule_fields
from lab.problems import Attention, Linear
from lab.record import append
from sim.machine import H100, MACHINES
from tests.experiments.cli.test_cli import document
from tests.experiments.cli.test_output import ESCAPES, be_terminal, on_terminal
from tests.experiments.examples import timed
from tests.lab.test_hugging_face import LLAMA_3_8B, written

LINEAR = ["linear", "m=1", "n=4096", "k=4096"]
MLA = ["attention_mla", "batch=64", "q_heads=128", "kv_heads=1", "q_len=1", "kv_len=8k", "page=64"]
DECODE = ["batch=1", "q_heads=32", "kv_heads=8", "head_dim=128", "q_len=1", "kv_len=8k"]


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run_command(arguments) == 0
    printed = capsys.readouterr()
    assert complaints(printed.err) == []
    return printed.out


def complaints(err: str) -> list[str]:
    """What standard error has besides what waits of over a second are for."""
    return [line for line in err.splitlines() if not line.endswith(" ...")]


def test_lists_and_machines_are_a_list_of_the_documents_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(["explain", "linear", "m=1,3", "n=4k", "k=4k..8k", "--machine", "h100,b200"], capsys)
    expected = [
        json.loads(json.dumps(lab.explain(Linear(m, 4096, k), MACHINES[chip]).as_dict()))
        for m in (1, 3)
        for k in (4096, 8192)
        for chip in ("h100", "b200")
    ]
    assert [{name: value for name, value in one.items() if name != "measured"} for one in found] == expected


def test_a_kernel_is_explained_by_its_own_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explain", "gemm_pingpong", "m=2k", "n=4k", "k=4k"]
    found = document([*words, "--schedule", "block_m=128,block_n=128,stages=4"], capsys)
    kernel, problem = catalog.get("gemm_pingpong"), Linear(2048, 4096, 4096)
    schedule = kernel.module.Schedule(**found["schedule"])
    assert (schedule.block_m, schedule.block_n, schedule.stages) == (128, 128, 4)
    for clock, bills in found["predicted"].items():
        assert bills["us"] == kernel.predicted_us(problem, schedule, H100, clock)
        assert bills["binds"] in bills["parts"]
        assert sum(bills["waterfall"].values()) == pytest.approx(bills["us"])
    (launch,) = kernel.launches(problem, schedule, H100)
    (shown,) = found["launches"]
    assert (shown["entry"], shown["grid"], shown["shared_bytes"]) == (launch.entry, [132, 1, 1], launch.shared_bytes)
    assert (shown["ctas_per_sm"], shown["limit"], shown["waves"]) == (1, "shared memory", 1)
    assert shown["registers"] is None
    text = said(words, capsys)
    for part in (
        "floor",
        "with a cold L2",
        "in a graph",
        "in a chain",
        "what binds",
        "tensor cores",
        "CTAs an SM holds",
    ):
        assert part in text


def test_the_newest_time_of_just_that_stands_beside_its_prediction(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(record, "COMMITTED", tmp_path)
    schedule = schedule_fields(catalog.get("gemv_vectorized").best_guess(Linear(1, 4096, 4096), H100))
    for us, time, more in ((20.0, "2001", {}), (15.0, "2002", {}), (9.0, "2003", {"stage": "search"})):
        append(timed(us=us, time=time, schedule=schedule, metrics=more), tmp_path / "bench.jsonl")
    append(timed(us=7.0, time="2004", schedule={**schedule, "unroll": 8}), tmp_path / "bench.jsonl")
    found = document(["explain", "gemv_vectorized", *LINEAR[1:]], capsys)
    assert found["measured"]["graph"]["us"] == 15.0
    assert "15.0 us (a | card, " in said(["explain", "gemv_vectorized", *LINEAR[1:]], capsys)
    assert document(["explain", "gemv_vectorized", "m=2", *LINEAR[2:]], capsys)["measured"] == {}


def test_a_card_that_nobody_calibrated_has_an_estimate_from_data_sheets(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown: an estimate from data sheets" in said(["explain", *LINEAR, "--machine", "a100"], capsys)


def test_registers_are_the_compilers(capsys: pytest.CaptureFixture[str]) -> None:
    (launch,) = document(["explain", "gemv_vectorized", "m=1", "n=64", "k=64", "--compile"], capsys)["launches"]
    compiled = document(["check", "gemv_vectorized", "m=1", "n=64", "k=64"], capsys)["compiled"]
    assert launch["registers"] == compiled["entries"]["gemv_vectorized"]["registers"]


def test_attention_and_latent_attention(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(["explain", *MLA], capsys)
    assert (found["problem"]["latent"], found["problem"]["head_dim"]) == (512, 576)
    assert found["kernel"] == "attention_mla"
    split = document(["explain", "attention_split_kv", *DECODE], capsys)
    assert split == document(["explain", "attention", *DECODE], capsys)
    assert split["bytes"] == Attention(1, 32, 8, 128, 1, 8192).bytes
    assert "KV cache" in said(["explain", *MLA], capsys)


def test_a_model_is_told_in_units_a_person_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = said(["explain", "model", "llama-3-8b", "--machine", "h100,h200"], capsys)
    for part in ("inter-token latency", "tokens/s", "ms", "GB", "gate", "head", "largest batch", "longest context"):
        assert part in text
    assert "H100 SXM 80 GB" in text
    assert "H200 SXM 141 GB" in text
    assert "time to first token" in said(["explain", "model", "llama-3-8b", "phase=prefill"], capsys)
    folder = str(written(tmp_path, LLAMA_3_8B))
    assert document(["explain", "model", folder], capsys) == document(["explain", "model", "llama-3-8b"], capsys)
    assert document(["explain", "model", folder, "batch=7"], capsys)["problem"]["batch"] == 7


def test_a_row_for_each_context(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(["explain", "model", "llama-2-13b", "context=1k..128k", "weights=bf16,fp8"], capsys).splitlines()
    contexts = [1024 << doublings for doublings in range(8)]
    rows = [line.split() for line in lines if line.strip().startswith("context=")]
    assert [row[:2] for row in rows] == [[f"context={c}", f"weights={w}"] for c in contexts for w in ("bf16", "fp8")]
    assert [row[-1] for row in rows[-2:]] == ["no", "no"]


def test_a_row_says_what_differs_even_where_one_has_the_usual_value(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["explain", "linear", "m=64", "n=4k", "k=4k", "weights=fp8", "activations=bf16,fp8"], capsys)
    assert "as usual" in text
    assert "activations=fp8" in text


def test_schedules_are_ranked_by_what_they_are_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "gemm_pingpong", "m=512", "n=1k", "k=1k"]
    found = document([*words, "--clock", "cold", "--machine", "h200"], capsys)
    kernel, problem = catalog.get("gemm_pingpong"), Linear(512, 1024, 1024)
    assert len(found["schedules"]) > 5
    assert all(a["us"] <= b["us"] for a, b in pairwise(found["schedules"]))
    for one in found["schedules"]:
        schedule = kernel.module.Schedule(**one["schedule"])
        assert one["us"] == kernel.predicted_us(problem, schedule, MACHINES["h200"], "cold")
    text = said([*words, "--top", "3"], capsys)
    assert f"3 of {len(document(words, capsys)['schedules'])} schedules" in text


def test_a_kind_of_problem_is_swept_over_its_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(["sweep", *LINEAR], capsys)
    assert {one["kernel"] for one in found["schedules"]} >= {"gemv_vectorized"}
    assert "gemv_coalesced" not in {one["kernel"] for one in found["schedules"]}, "outgrown"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["explain", "gemm_v7", "m=1"], "unknown kind 'gemm_v7'; kinds: "),
        (["explain", *LINEAR, "--schedule", "rows=1"], "a schedule is one kernel's: name the kernel"),
        (["explain", "model", "llama-2-7b", "--compile"], "--compile is for one kernel or one problem"),
        (["explain", "model", "llama-2-7b", "layers=0"], "layers must be from 1"),
        (["explain", "model", "/nowhere/at/all"], "unknown model '/nowhere/at/all'; known models: llama-2-7b"),
        (["explain", "model", "/"], "there is no such file; a model is a folder with its config.json"),
        (["explain", "model", "x" * 5000], "unknown model 'xxx"),
        (["explain", *LINEAR, "--machine", "h100,"], "unknown machine ''"),
        (["explain", *LINEAR, "--machine", "h100,h1000"], "unknown machine 'h1000'"),
        (["explain", "linear", "m=1..", "n=1", "k=1"], "m takes an integer; got ''"),
        (["explain", "linear", "m=1,,2", "n=1", "k=1"], "m takes an integer; got ''"),
        (["explain", "linear", "m=1..1m", "n=1..1m", "k=1"], "these are 441 problems; one command takes 256"),
        (
            ["explain", "gemm_wgmma", "m=8", "n=8", "k=8", "--machine", "h100,a100"],
            "needs architecture sm_90a; the A100",
        ),
        (["explain", "gemm_wgmma", "m=8", "n=1m", "k=1m"], "the H100 SXM 80 GB has 80,000,000,000 B"),
        (["explain", "gemm_wgmma", "m=8", "n=8", "k=8", "--schedule", "stages=99"], "stages"),
        (["sweep", "model", "llama-2-7b"], "a sweep is of one problem that a kernel solves"),
        (["sweep", "linear", "m=1,2", "n=8", "k=8"], "a sweep is of one problem that a kernel solves"),
        (["sweep", "gemm_pingpong", "m=8", "n=8", "k=12"], "needs k to be a multiple of 8"),
        (["sweep", *LINEAR, "--clock", "wall"], "unknown clock 'wall'; clocks: cold, graph, chain"),
        (["sweep", *LINEAR, "--top", "0"], "Invalid value for '--top'"),
    ],
    ids=lambda a: " ".join(a)[:60] if isinstance(a, list) else "",
)
def test_bad_input_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (complaint,) = complaints(printed.err)
    assert says in complaint
    assert len(complaint) < 6000


def test_what_does_not_fit_is_said_and_not_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    words: list[Any] = ["explain", "attention", "batch=2147483647", "q_heads=1", "kv_heads=1", "head_dim=8"]
    words += ["q_len=2147483647", "kv_len=2147483647"]
    found = document(words, capsys)
    assert (found["fits"], found["kernel"]) == (False, None)
    assert "fits the memory" in said(words, capsys)


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["explain", "model", "smollm2-135m", "--machine", "h100,h200"],
            ["attention", "launch", "inter-token", "head"],
        ),
        (["explain", "model", "smollm2-135m", "batch=1,8", "context=1k"], ["weights", "predicted"]),
        (["explain", *MLA], ["attention_mla", "cluster", "latent=512"]),
        (["sweep", "gemm_warp_specialized", "m=1k", "n=1k", "k=1k", "--top", "2"], ["gemm_warp_specialized"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_words_stay_whole_at_any_width(
    arguments: list[str],
    words: list[str],
    columns: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    be_terminal(monkeypatch, columns)
    assert run_command(arguments) == 0
    look(capsys.readouterr().out, words, columns)


def test_words_stay_whole_on_a_terminal_beside_what_a_wait_says() -> None:
    code, shown = on_terminal(["explain", *MLA], 60, NO_COLOR="1")
    assert code == 0
    look(shown, ["attention_mla", "cluster", "latent=512"], 60)


def look(shown: str, words: list[str], columns: int) -> None:
    lines = ESCAPES.sub("", shown.replace("\r", "\n")).splitlines()
    assert max(map(len, lines)) <= columns
    assert "…" not in shown
    assert "Traceback" not in shown
    for word in words:
        assert any(re.search(rf"(^|[\s:]){word}\b", line) for line in lines), word


def test_a_reader_of_one_line_and_a_full_disk() -> None:
    command = f"{sys.executable} -m experiments sweep gemv_vectorized m=1 n=4k k=4k"
    done = subprocess.run(["sh", "-c", f"{command} | head -1"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert "Traceback" not in done.stderr
    done = subprocess.run(["sh", "-c", f"LANG=C {command} > /dev/full"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
