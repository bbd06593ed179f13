"""The runner: experiments are found, run on the simulated chip, and leave whole records even when interrupted."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import experiments
from experiments import runner
from experiments.catalog import module_of, names, questions
from experiments.cli import run_command
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
from lab import record
from lab.record import Archive, Checked, Record, provenance
from sim.errors import InputError
from tests.experiments.examples import NOTHING, SMALL


def test_they_are_found_by_the_question_they_ask() -> None:
    assert names() == (
        "attention_bars",
        "attention_wrong_machine",
        "batching",
        "ceilings",
        "choice_regret",
        "chunked_prefill",
        "continuous_batching",
        "decode_bars",
        "decode_chain",
        "decode_floor",
        "disaggregation",
        "first_and_later",
        "flash_attention",
        "fp8_error",
        "gemm_bars",
        "gemm_ladder",
        "gemv_ladder",
        "hbm_traffic",
        "kv_cache",
        "kv_growth",
        "kv_shrink",
        "loading",
        "machines",
        "paged_capacity",
        "paged_kv",
        "quality",
        "quantization",
        "rowwise_bars",
        "serving_bars",
        "serving_loop",
        "step_bars",
        "step_batching",
        "step_machines",
        "two_gpu_bars",
        "two_machines",
        "wrong_machine",
    )
    assert all(question == runner.get(name).QUESTION for name, question in questions().items())
    assert module_of("kv_cache") == "experiments.questions.kv_cache"
    assert module_of("gemm_bars") == "experiments.bars.gemm_bars"
    with pytest.raises(InputError, match="unknown experiment 'peers'; known experiments: attention_bars"):
        runner.get("peers")


@pytest.mark.parametrize("name", ["ceilings", "kv_cache", "machines", *SMALL])
def test_from_a_script(name: str) -> None:
    found = experiments.run(name, on="sim", **SMALL.get(name, {}))
    records = found.records
    assert records
    assert found.rows
    assert not found.kept
    assert found.passed is not False or any(row.measured for row in found.rows)  # predictions refute nothing
    assert len({r.run for r in records}) == 1
    assert all(r.experiment == name and r.on == "sim" and r.us is None for r in records)
    assert all(r.check.passed for r in records if r.check)
    answer = runner.conclude(name, records, NOTHING)
    assert answer.rows
    assert answer.verdict.sentence.endswith(".")
    assert answer.verdict.sentence.count("\n") == 0


@dataclass(frozen=True)
class Slow:
    """Options of the experiment below."""


def slow_experiment(seconds: float) -> ModuleType:
    """An experiment that takes its time after two records."""
    module = ModuleType("slow")

    def measure(_: Slow, backend: Backend) -> Iterator[Record]:
        yield backend.closed_form({"n": 1})
        yield backend.closed_form({"n": 2})
        print("ready", flush=True)
        time.sleep(seconds)
        yield backend.closed_form({"n": 3})

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
from tests.experiments.test_runner import slow_experiment
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
    written = experiments.run("kv_cache", record=True).records
    lines = (tmp_path / "kv_cache.jsonl").read_text().splitlines()
    assert [json.loads(line)["metrics"] for line in lines] == [r.metrics for r in written]


def test_a_failed_check_fails_the_run() -> None:
    failed = Record(**provenance(), on="sim", machine="h100", metrics={"variant": "MHA"}, check=Checked(False, 2.0))
    answer = runner.Answer("x", "?", (failed,), (), Verdict(True, "Yes."))
    assert not answer.passed


def test_what_could_not_be_read_is_said_beside_the_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    past = Archive((), ("bench.jsonl line 7 is not a whole record and was skipped",))
    monkeypatch.setattr(runner, "archive", lambda: past)
    run_command(["run", "kv_cache", "--json", "--no-record"])
    out, err = capsys.readouterr()
    assert json.loads(out)["complaints"] == list(past.complaints)
    assert err == f"lab: {past.complaints[0]}\n"
