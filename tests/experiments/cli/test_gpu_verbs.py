"""The verbs for a GPU, with the worker process replaced: what they ask of it and what they make of its answers."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

import experiments
from experiments import runner
from experiments.cli import bench, run_command
from experiments.running import backends, on_device
from experiments.running.jobs import Job, Search
from lab import record, tuned
from lab.choice import choose, schedule_words
from lab.gpu import worker
from lab.kernel import parse_schedule, schedule_fields
from lab.problems import Linear
from lab.record import Checked, Record, provenance
from sim.errors import EnvironmentFailure
from sim.machine import H100
from tests.experiments.examples import timed

GEMV = ["gemv_vectorized", "m=1", "n=64", "k=64"]
SCHEDULE = {"rows": 1, "split_k": 1, "teams": 4, "unroll": 1}


class Worker:
    """Remembers the jobs it was given and answers each with a kernel's and a peer's record on two clocks."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.searches: list[Search] = []
        self.seconds = 0.0
        self.passed = True

    def stream(self, function: Callable[..., Any], argument: Any, deadline_s: float) -> Iterator[Any]:
        assert deadline_s > 0
        if function is on_device.ceilings:
            metrics = {"what": "read", "nbytes": 2**31, "bytes_per_s": 3.07e12}
            yield msgspec.to_builtins(self._record(None, 1.0, experiment="ceilings", metrics=metrics))
            return
        self.seconds = argument["seconds"]
        assert deadline_s >= self.seconds
        if function is on_device.search:
            yield from self._searched(msgspec.convert(argument["jobs"], list[Search]))
            return
        assert function is on_device.bench
        for job in msgspec.convert(argument["jobs"], list[Job]):
            self.jobs.append(job)
            kernel, problem = job.parts()
            schedule = schedule_fields(parse_schedule(kernel, job.schedules[0], problem, H100))
            for clock in job.clocks:
                shared = {"problem": job.problem, "clock": clock, "experiment": job.experiment, "metrics": job.facts}
                check = Checked(self.passed, 0.5 if self.passed else None)
                us = 4.0 if self.passed else None
                ours = {"schedule": schedule, "predicted_us": 2.5, "check": check}
                yield msgspec.to_builtins(self._record(job.kernel, us, **ours, **shared))
                if job.sweep:
                    ours = {**ours, "schedule": {**schedule, "unroll": 4}, "predicted_us": 2.0}
                    yield msgspec.to_builtins(self._record(job.kernel, 5.0, **ours, **shared))
                yield msgspec.to_builtins(self._record("peer:cublas", 8.0, check=Checked(True, 0.5), **shared))

    def _searched(self, searches: list[Search]) -> Iterator[Any]:
        """Two schedules in a short race, one record; the second of them and a peer in the last one."""
        for search in searches:
            self.searches.append(search)
            shared = {"problem": search.problem, "clock": search.clock, "check": Checked(True, 0.5)}
            schedule = {**SCHEDULE, "unroll": 2}
            tried = {"tried": {"gemv_vectorized(unroll=1)": 9.0, "gemv_vectorized(unroll=2)": 8.0}}
            found = self._record(None, None, **tried, **{**shared, "check": None, "metrics": {"stage": "search"}})
            yield msgspec.to_builtins(found)
            final = {"metrics": {"stage": "final"}, **shared}
            yield msgspec.to_builtins(self._record("gemv_vectorized", 8.5, schedule=schedule, **final))
            yield msgspec.to_builtins(self._record("peer:cublas", 9.5, **final))

    def run(self, function: Callable[..., Any], argument: Any, deadline_s: float) -> Any:
        assert function is on_device.check
        assert deadline_s > 0
        self.jobs.append(msgspec.convert(argument, Job))
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
    monkeypatch.setattr(backends, "real_machine", lambda: H100)
    monkeypatch.setattr(record, "folder", lambda: tmp_path)
    monkeypatch.setattr(runner, "folder", lambda: tmp_path)
    monkeypatch.setattr("sys.argv", ["lab", "typed", "by a person"])
    return fake


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty tuned table."""
    path = tmp_path / "lab" / "tuned.jsonl"
    path.parent.mkdir()
    monkeypatch.setattr(tuned, "TABLE", path)
    return path


def test_bench(gpu: Worker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--schedule", "unroll=1", "--clocks", "graph", "--rounds", "7", "--sweep"]
    assert run_command(["bench", *GEMV, *words, "--json"]) == 0
    document = msgspec.json.decode(capsys.readouterr().out)
    assert [r["kernel"] for r in document["records"]] == ["gemv_vectorized", "gemv_vectorized", "peer:cublas"]
    (job,) = gpu.jobs
    kernel, problem = job.parts()
    guess = replace(kernel.best_guess(problem, H100), unroll=1)  # what is not given stays at the best guess
    assert job.schedules == (schedule_words(schedule_fields(guess)),)
    assert (job.sweep, job.peers, job.clocks, job.rounds) == (True, True, ("graph",), 7)
    kept = record.read([tmp_path / "bench.jsonl"]).records
    assert [r.us for r in kept] == [4.0, 5.0, 8.0]
    assert {r.command for r in kept} == {"lab typed 'by a person'"}
    assert run_command(["bench", *GEMV, *words]) == 0
    assert "graph: predicted to be the fastest, one takes 1.250 of the fastest's time" in capsys.readouterr().out


@pytest.mark.usefixtures("gpu")
def test_bench_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", *GEMV, "--no-record"]) == 0
    out = capsys.readouterr().out
    (line, _) = [line for line in out.splitlines() if line.lstrip().startswith("gemv_vectorized  ")]
    assert line.split()[-6:] == ["4", "-", "2.5", "30%", "2", "right"]
    assert "measured on a card, " in out
    assert list(tmp_path.iterdir()) == []


def test_bench_of_a_wrong_kernel_is_exit_code_1(gpu: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.passed = False
    assert run_command(["bench", *GEMV]) == 1
    assert "wrong" in capsys.readouterr().out


def test_tuning_keeps_every_record_and_the_winner(
    gpu: Worker, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["bench", "linear", "m=3", "n=64", "k=64", "--tune", "--json"]) == 0
    (search,) = gpu.searches
    assert (search.kernel, search.clock, search.incumbents) == ("", "cold", ())
    document = msgspec.json.decode(capsys.readouterr().out)
    assert [r["us"] for r in document["records"]] == [None, 8.5, 9.5]
    assert len(record.read([tmp_path / "bench.jsonl"]).records) == 3
    (entry,) = tuned.load(table)
    assert (entry.kernel, entry.schedule["unroll"], entry.us, entry.problem_class["m"]) == (
        "gemv_vectorized",
        2,
        8.5,
        4,
    )
    assert run_command(["bench", "gemm_wgmma", "m=3", "n=64", "k=64", "--tune", "--clocks", "graph"]) == 0
    again = gpu.searches[1]
    assert (again.kernel, again.clock) == ("gemm_wgmma", "graph")
    assert again.incumbents == (("gemv_vectorized", "rows=1,split_k=1,teams=4,unroll=2"),)


def test_tuning_several_layers_for_a_chain(gpu: Worker, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "linear", "m=1", "n=64,128", "k=64", "--tune", "--clocks", "chain", "--most", "5", "--no-peers"]
    assert run_command(words) == 0
    assert [(s.problem["n"], s.clock, s.most, s.peers) for s in gpu.searches] == [
        (64, "chain", 5, False),
        (128, "chain", 5, False),
    ]
    assert [(e.problem_class["n"], e.chain) for e in tuned.load(table)] == [(64, True), (128, True)]
    out = capsys.readouterr().out
    assert "linear: kind=linear m=1 n=128 k=64 weights=bf16" in out
    assert "4 results checked" in out


def test_the_winner_of_each_problem_is_kept_when_its_search_ends(gpu: Worker, table: Path) -> None:
    searches = [Search(problem=Linear(1, 64, k).as_dict()) for k in (64, 128)]
    chip = backends.GpuBackend(H100, "gemm_bars", provenance())
    found = chip.tuned(searches, 60)
    kept = [(next(found).us, len(tuned.load(table))) for _ in range(6)]
    assert [count for _, count in kept] == [0] * 3 + [1] * 3
    assert list(found) == []
    assert len(tuned.load(table)) == 2
    assert len(gpu.searches) == 2


def test_bench_of_what_lab_linear_chooses(gpu: Worker) -> None:
    assert run_command(["bench", "linear", "m=1", "n=64", "k=64", "--no-record"]) == 0
    (job,) = gpu.jobs
    assert job.kernel == choose(Linear(1, 64, 64), H100)[0].name


def test_the_bars_of_a_part(gpu: Worker, table: Path, tmp_path: Path) -> None:
    answer = runner.answer("gemm_bars", ["part=short_k", "seconds=100", "tune=true"], on="gpu")
    assert [s.problem["k"] for s in gpu.searches] == [128, 256, 512, 1024]
    assert len(tuned.load(table)) == 4
    assert [(j.kernel, j.clocks, j.paces) for j in gpu.jobs] == [("gemv_vectorized", ("cold",), ("sustained",))] * 4
    assert 0 < gpu.seconds <= 100
    assert answer.passed
    assert answer.verdict.sentence == (
        "short k: 2.000 of cuBLAS (geometric mean of 4, bar 1.00), least 2.000 at 8192 x 8192 x 128 (bar 1.00)."
    )
    assert len(record.read([tmp_path / "gemm_bars.jsonl"]).records) == 4 * 3 + 4 * 2
    rows = {(row.case, row.quantity): row.measured for row in answer.rows}
    assert rows["8192 x 8192 x 128, short k", "gemv_vectorized, us"] == 4.0
    assert rows["8192 x 8192 x 128, short k", "its time over ours"] == 2.0


def test_searches_that_leave_the_table_alone(gpu: Worker, table: Path) -> None:
    answer = runner.answer("choice_regret", ["count=2", "formats=bf16"], on="gpu")
    assert [(s.clock, s.plain, s.most) for s in gpu.searches] == [("graph", True, 12)] * 2
    assert all(s.facts["pick"] == "{}({})".format(*s.picked or ()) for s in gpu.searches)
    assert len(answer.records) == 2 * 3
    assert not table.exists()


@pytest.mark.usefixtures("table")
def test_the_ladder_on_gpu(gpu: Worker) -> None:
    answer = runner.answer("gemm_ladder", ["m=256", "n=256", "k=256", "only=bf16"], on="gpu")
    assert answer.passed
    assert {(j.clocks, j.facts["ladder"]) for j in gpu.jobs} == {(("cold",), "bf16")}
    assert answer.verdict.sentence.startswith("bf16 climbs from 200.0% of cuBLAS (gemm_naive) to ")


def test_the_gemv_ladder_times_each_rung_in_a_graph(gpu: Worker) -> None:
    answer = runner.answer("gemv_ladder", ["only=4096x4096"], on="gpu")
    assert answer.passed
    assert [j.kernel for j in gpu.jobs][:2] == ["gemv_naive", "gemv_coalesced"]
    assert {j.clocks for j in gpu.jobs} == {("graph",)}
    assert "4096x4096 climbs from 4 us (gemv_naive) to 4 us (gemv_naive), " in answer.verdict.sentence
    assert "and 200.0% of cuBLAS (measured)" in answer.verdict.sentence


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tune", "--sweep"], "--tune tries every schedule by one clock"),
        (["--tune", "--clocks", "cold,graph"], "no second clock"),
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
    records = experiments.run("two_machines", on="gpu", d=256, m=64).records
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
    records = experiments.run("ceilings", on="gpu").records
    past = record.Archive(tuple(records))
    answer = runner.conclude("ceilings", records, past)
    assert "A read kernel gets 3.07 TB/s on a card, " in answer.verdict.sentence
    assert "91.6% of the data sheet's 3.35 TB/s" in answer.verdict.sentence


def test_what_makes_a_time_doubtful_is_said() -> None:
    assert bench._result(timed()) == "right"
    doubtful = timed(metrics={"impossible": True}, throttle=["power cap"])
    assert bench._result(doubtful) == "right; below the floor: impossible; throttled: power cap"
    assert bench._result(timed(check=None, metrics={"failure": "3 mismatches"})) == "3 mismatches"


@pytest.fixture
def own_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the user's table will be, in a folder that has none."""
    monkeypatch.setenv("LAB_CONFIG_DIR", str(tmp_path / "config"))
    return tuned.user_table()


@pytest.mark.usefixtures("table")
def test_tune_keeps_winners_in_the_users_table_and_goes_on_where_it_ended(
    gpu: Worker, own_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", "linear", "m=1,2,4", "n=64", "k=64", "--json"]
    assert run_command(words) == 0
    document = msgspec.json.decode(capsys.readouterr().out)
    assert [row["outcome"] for row in document["problems"]] == ["raced"] * 3
    assert {(row["kernel"], row["us"]) for row in document["problems"]} == {("gemv_vectorized", 8.5)}
    assert [(s.most, s.peers, s.plain, s.clock) for s in gpu.searches] == [(0, False, True, "graph")] * 3
    assert all(len(s.incumbents) > 1 for s in gpu.searches)
    assert [entry.problem_class["m"] for entry in tuned.load(own_table)] == [1, 2, 4]
    assert len(record.read([tmp_path / "tune.jsonl"]).records) == 9
    assert choose(Linear(3, 64, 64), H100)[1].unroll == 2  # the winner of its class, m = 4
    assert run_command(words) == 0
    document = msgspec.json.decode(capsys.readouterr().out)
    assert (document["known"], document["problems"], len(gpu.searches)) == (3, [], 3)
    assert run_command([*words, "--again"]) == 0
    assert len(gpu.searches) == 6


@pytest.mark.usefixtures("table")
def test_a_race_that_breaks_the_device_loses_its_own_problem_only(
    gpu: Worker, own_table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = gpu.stream

    def stream(function: Any, argument: Any, deadline_s: float) -> Iterator[Any]:
        if argument["jobs"][0]["problem"]["m"] == 2:
            raise EnvironmentFailure("the worker was killed at its deadline of 300 s")
        yield from whole(function, argument, deadline_s)

    monkeypatch.setattr(worker, "stream", stream)
    assert run_command(["tune", "linear", "m=1,2,4", "n=64", "k=64", "--no-record"]) == 1
    out = capsys.readouterr().out
    assert "failed: the worker was killed at its deadline of 300 s" in out
    assert [entry.problem_class["m"] for entry in tuned.load(own_table)] == [1, 4]


@pytest.mark.usefixtures("own_table")
def test_what_is_undecided_is_told_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "model", "smollm2-135m", "--dry-run", "--machine", "h200", "--candidates", "5", "--json"]
    assert run_command(words) == 0
    document = msgspec.json.decode(capsys.readouterr().out)
    kinds = {row["problem"]["kind"] for row in document["problems"]}
    assert {"linear", "attention", "rmsnorm"} <= kinds
    assert {row["outcome"] for row in document["problems"]} <= {"undecided", "decided by prediction"}
    assert max(row["candidates"] for row in document["problems"]) == 5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["linear", "m=1", "n=64", "k=64", "--machine", "h200"], "--machine is for --dry-run, --compile and --ray"),
        (["linear", "m=1", "n=64", "k=64", "--ray", "auto"], "--ray needs --machine NAME"),
        (["linear", "m=1", "n=63", "k=63", "weights=int4_g128", "--dry-run", "--machine", "h200"], "no kernel takes"),
        (["liner", "m=1"], "unknown kind 'liner'"),
    ],
)
def test_what_lab_tune_refuses(words: list[str], says: str, gpu: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["tune", *words]) == 2
    assert says in capsys.readouterr().err
    assert gpu.searches == []
