"""The verbs for a GPU, with the worker process replaced: what they ask of it and what they make of its answers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import experiments
from experiments import _chips, _device, runner
from experiments.cli import run_command
from lab import record
from lab.gpu import worker
from lab.record import Checked, Record, provenance
from sim.errors import EnvironmentFailure
from sim.machine import H100

GEMV = ["gemv_vectorized", "m=1", "n=64", "k=64"]
SCHEDULE = {"rows": 1, "split_k": 1, "teams": 4, "unroll": 1}


class Worker:
    """Remembers the jobs it was given and answers each with a kernel's and a peer's record on two clocks."""

    def __init__(self) -> None:
        self.jobs: list[_device.Job] = []
        self.passed = True

    def stream(self, function: Callable[..., Any], argument: Any, deadline_s: float) -> Iterator[Any]:
        assert deadline_s > 0
        if function is _device.ceilings:
            metrics = {"what": "read", "nbytes": 2**31, "bytes_per_s": 3.07e12}
            yield msgspec.to_builtins(self._record(None, 1.0, experiment="ceilings", metrics=metrics))
            return
        assert function is _device.bench
        for job in msgspec.convert(argument, list[_device.Job]):
            self.jobs.append(job)
            for clock in job.clocks:
                shared = {"problem": job.problem, "clock": clock, "experiment": job.experiment}
                check = Checked(self.passed, 0.5 if self.passed else None)
                us = 4.0 if self.passed else None
                yield msgspec.to_builtins(self._record(job.kernel, us, schedule=SCHEDULE, check=check, **shared))
                yield msgspec.to_builtins(self._record("peer:cublas", 8.0, check=Checked(True, 0.5), **shared))

    def run(self, function: Callable[..., Any], argument: Any, deadline_s: float) -> Any:
        assert function is _device.check
        assert deadline_s > 0
        self.jobs.append(msgspec.convert(argument, _device.Job))
        right = {"passed": True, "error": 0.5, "mismatches": 0, "first_mismatch": None}
        return right | {"guards_intact": True, "rows_checked": 1}

    def _record(self, kernel: str | None, us: float | None, **fields: Any) -> Record:
        origin = provenance() | {"command": "python -m lab.gpu.worker 5", "run": f"run {len(self.jobs)}"}
        shared = {"on": "gpu", "machine": "h100", "card": "a card", "kernel": kernel, "us": us, **fields}
        return Record(**origin, **shared)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Worker:
    fake = Worker()
    monkeypatch.setattr(worker, "stream", fake.stream)
    monkeypatch.setattr(worker, "run", fake.run)
    monkeypatch.setattr(_chips, "real_machine", lambda: H100)
    monkeypatch.setattr(record, "folder", lambda: tmp_path)
    monkeypatch.setattr(runner, "folder", lambda: tmp_path)
    monkeypatch.setattr("sys.argv", ["lab", "typed", "by a person"])
    return fake


def test_bench(gpu: Worker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--schedule", "unroll=1", "--clocks", "graph", "--rounds", "7", "--sweep"]
    assert run_command(["bench", *GEMV, *words, "--json"]) == 0
    document = msgspec.json.decode(capsys.readouterr().out)
    assert [r["kernel"] for r in document["records"]] == ["gemv_vectorized", "peer:cublas"]
    (job,) = gpu.jobs
    assert (job.schedules, job.sweep, job.peers, job.clocks, job.rounds) == (("unroll=1",), True, True, ("graph",), 7)
    kept = record.read([tmp_path / "bench.jsonl"]).records
    assert [r.us for r in kept] == [4.0, 8.0]
    assert {r.command for r in kept} == {"lab typed 'by a person'"}


@pytest.mark.usefixtures("gpu")
def test_bench_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", *GEMV, "--no-record"]) == 0
    out = capsys.readouterr().out
    (line, _) = [line for line in out.splitlines() if line.lstrip().startswith("gemv_vectorized  ")]
    assert line.split()[-5:] == ["cold", "4", "30%", "2", "right"]
    assert "measured on a card, " in out
    assert list(tmp_path.iterdir()) == []


def test_bench_of_a_wrong_kernel_is_exit_code_1(gpu: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.passed = False
    assert run_command(["bench", *GEMV]) == 1
    assert "wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--clocks", "warm"], "unknown clock 'warm'; clocks: cold, graph"),
        (["--schedule", "rows=3"], "rows must be one of 1, 2, 4, 8"),
        (["--rounds", "0"], "--rounds"),
        (["--deadline", "0"], "--deadline"),
    ],
)
def test_bad_input_reaches_no_worker(
    gpu: Worker, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["bench", *GEMV, *words]) == 2
    assert says in capsys.readouterr().err
    assert gpu.jobs == []


def test_a_deadline_keeps_what_was_measured_before(
    gpu: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = gpu.stream

    def half(*arguments: Any) -> Iterator[Any]:
        yield next(whole(*arguments))
        raise EnvironmentFailure("the worker was killed at its deadline of 300 s")

    monkeypatch.setattr(worker, "stream", half)
    assert run_command(["bench", *GEMV]) == 4
    assert capsys.readouterr().err == "lab: the worker was killed at its deadline of 300 s\n"
    assert len(record.read([tmp_path / "bench.jsonl"]).records) == 1


def test_check_on_gpu(gpu: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["check", *GEMV, "--on", "gpu", "--schedule", "rows=2", "--json"]) == 0
    document = msgspec.json.decode(capsys.readouterr().out)
    assert (document["on"], document["passed"], document["ptx"]) == ("gpu", True, None)
    assert document["theory"]["flops"] == document["simulated"]["flops"] == 2 * 64 * 64
    assert gpu.jobs[0].schedules == ("rows=2",)
    assert run_command(["check", *GEMV, "--on", "gpu"]) == 0


def test_an_experiment_on_gpu_keeps_its_records_and_shows_them(gpu: Worker, tmp_path: Path) -> None:
    records = experiments.run("two_machines", on="gpu", d=256, m=64)
    assert len(gpu.jobs) == 4
    assert record.read([tmp_path / "two_machines.jsonl"]).records == tuple(records)
    own = [r for r in records if r.kernel == "gemv_vectorized"]
    assert all(r.simulated and r.simulated["flops"] for r in own)
    past = record.read([tmp_path / "two_machines.jsonl"])
    answer = runner.conclude("two_machines", records, past)
    rows = {(row.case, row.quantity): row for row in answer.rows}
    assert rows["gemv_vectorized, m = 1 (overhead-bound)", "time in a graph, us"].measured == 4.0
    assert rows["gemv_vectorized, m = 1 (overhead-bound)", "peer:cublas cold L2, us"].measured == 8.0
    assert "(measured)" in answer.verdict.sentence


@pytest.mark.usefixtures("gpu")
def test_ceilings_on_gpu() -> None:
    records = experiments.run("ceilings", on="gpu")
    past = record.Archive(tuple(records))
    answer = runner.conclude("ceilings", records, past)
    assert "A read kernel gets 3.07 TB/s on a card, " in answer.verdict.sentence
    assert "91.6% of the data sheet's 3.35 TB/s" in answer.verdict.sentence
