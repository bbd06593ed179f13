"""The `lab` command: documents, exit codes, one line for every mistake, nothing else on standard output."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import cli, runner
from experiments.cli import run_command
from lab import catalog
from lab.problems import QUESTIONS
from lab.record import ROOT
from sim.counts import Counts
from sim.emulator import Access, Hazard
from sim.errors import EnvironmentFailure
from sim.launch import Launch

CHECK = ["check", "gemv_vectorized", "m=2", "n=24", "k=64"]


def document(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    """The one JSON document that a command line prints."""
    assert run_command([*arguments, "--json"]) == code
    said = capsys.readouterr()
    assert all(line.endswith(" ...") for line in said.err.splitlines())  # what a wait of over a second waits for
    assert said.out.count("\n") == 1
    return json.loads(said.out)


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    listed = document(["list"], capsys)
    assert [k["kernel"] for k in listed] == list(catalog.names())
    for kernel in listed:
        assert {"kernel", "solves", "formats", "arch", "adds", "after"} <= kernel.keys()
        assert kernel["solves"] in QUESTIONS


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    explained = document(["explain", "linear", "m=2048", "n=4096", "k=4096"], capsys)
    assert explained["flops"] == 68_719_476_736
    assert explained["problem"] == {"kind": "linear", "m": 2048, "n": 4096, "k": 4096, "weights": "bf16"}
    words = ["batch=1", "q_heads=32", "kv_heads=8", "head_dim=128", "q_len=1", "kv_len=8192", "causal=true", "kv=fp8"]
    assert document(["explain", "attention", *words, "--machine", "b200"], capsys)["regime"] == "memory"
    model = document(["explain", "model", "llama-2-13b", "batch=1", "context=4096", "weights=bf16"], capsys)
    assert model["details"]["parameters"] == 13_015_864_320
    by_hand = [
        "layers=40",
        "d=5120",
        "q_heads=40",
        "kv_heads=40",
        "head_dim=128",
        "ffn=13824",
        "vocab=32000",
        "context=4096",
    ]
    assert document(["explain", "model", *by_hand], capsys) == model


def test_check(capsys: pytest.CaptureFixture[str]) -> None:
    checked = document([*CHECK, "--schedule", "rows=2"], capsys)
    contract = {"kernel", "problem", "schedule", "on", "passed", "error", "theory", "simulated", "ptx", "hazards"}
    assert contract <= checked.keys()
    assert (checked["passed"], checked["on"], checked["ptx"], checked["hazards"]) == (True, "sim", None, [])
    assert checked["schedule"]["rows"] == 2
    assert checked["theory"].keys() == checked["simulated"].keys() == Counts().as_dict().keys()
    assert checked["theory"]["flops"] == checked["simulated"]["flops"] == 2 * 2 * 24 * 64


def test_check_of_a_large_problem_computes_a_part_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    checked = document(["check", "gemv_vectorized", "m=3", "n=16500", "k=16384"], capsys)
    assert checked["passed"]
    assert checked["simulated"]["flops"] == 2 * 3 * 16500 * 16384
    assert checked["checked"]["n"] < 16500
    assert checked["checked"]["n"] % 128 == 16500 % 128
    assert "of 16,500" in checked["note"]


def test_a_failed_check_is_exit_code_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = catalog.get("gemv_vectorized").module
    right = module.theory
    monkeypatch.setattr(module, "theory", lambda *a: right(*a) + Counts(**dict.fromkeys(Counts().as_dict(), 1)))
    checked = document(CHECK, capsys, code=1)
    assert not checked["passed"]
    assert checked["disagreements"]["flops"]["theory"] == checked["disagreements"]["flops"]["counted"] + 1


def test_a_check_compiles_the_device_code_and_says_that_it_was_not_executed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    checked = document([*CHECK, "--machine", "a100"], capsys)
    assert (checked["compiled"]["arch"], checked["executed"]) == ("sm_80", False)
    assert checked["compiled"]["entries"]["gemv_vectorized"]["registers"] > 0
    assert run_command(CHECK) == 0
    assert "compiled for sm_90a and not executed; --ptx executes it" in capsys.readouterr().out


RACE = Hazard("race on shared memory", "warp 0 and warp 1 are not ordered", Access("warp 0", "k.cu:3", "st.shared"))


@pytest.mark.parametrize("hazards", [(), (RACE,)], ids=["right", "racy"])
def test_check_with_ptx(
    hazards: tuple[Hazard, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def run(ptx: str, launch: Launch, arrays: Any, machine: Any, seed: int, **_: Any) -> Any:
        assert ".entry gemv_vectorized" in ptx
        seeds.append(seed)
        counts = catalog.get(launch.kernel).module.simulate(launch, arrays, machine)
        return SimpleNamespace(counts=counts, hazards=hazards)

    monkeypatch.setattr("lab.ptx_executor.run", run)
    checked = document([*CHECK, "--seeds", "3"], capsys, code=1 if hazards else 0)
    assert checked["executed"]
    assert seeds == [0, 1, 2]
    assert [(h["kind"], h["access"]["line"], h["seed"]) for h in checked["hazards"]] == [
        ("race on shared memory", "k.cu:3", 0) for _ in hazards
    ]
    assert checked["passed"] == (not hazards)
    assert checked["ptx"]["flops"] == checked["theory"]["flops"]
    assert run_command([*CHECK, "--ptx"]) == (1 if hazards else 0)
    said = capsys.readouterr().out
    assert f"in 1 interleavings and met {len(hazards)} hazards" in said
    assert "not executed" not in said
    assert ("hazard in interleaving 0: race on shared memory: warp 0" in said) == bool(hazards)


def test_a_wrong_result_of_the_ptx_is_told_from_the_simulators(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: str, launch: Launch, arrays: Any, machine: Any, seed: int, **__: Any) -> Any:
        counts = catalog.get(launch.kernel).module.simulate(launch, arrays, machine)
        if seed:
            arrays["y"][1, 7] ^= 0x4000  # a bit of the exponent
        return SimpleNamespace(counts=counts + Counts(flops=1), hazards=())

    monkeypatch.setattr("lab.ptx_executor.run", run)
    checked = document([*CHECK, "--seeds", "2"], capsys, code=1)
    assert checked["error"] <= 1 < checked["ptx_error"]
    assert [(w["seed"], w["mismatches"], w["first_mismatch"]) for w in checked["ptx_wrong"]] == [(1, 1, [1, 7])]
    assert run_command([*CHECK, "--seeds", "2"]) == 1
    said = capsys.readouterr().out
    assert "PTX in interleaving 1: 1 wrong elements, the first y[1, 7]; error " in said
    assert "flops disagrees: theory 6,144, PTX " in said
    assert (
        f"FAILED: largest error {checked['error']:.3g} of the bound, {checked['ptx_error']:.3g} of the bound in PTX"
        in said
    )


def test_mutants_imply_that_the_ptx_is_executed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: str, launch: Launch, arrays: Any, machine: Any, **__: Any) -> Any:
        return SimpleNamespace(counts=catalog.get(launch.kernel).module.simulate(launch, arrays, machine), hazards=())

    monkeypatch.setattr("lab.ptx_executor.run", run)
    monkeypatch.setattr("lab.mutants.judge_mutants", lambda *_: iter(()))
    checked = document([*CHECK, "--mutants"], capsys)
    assert (checked["executed"], checked["seeds"], checked["mutants"]) == (True, 1, [])


def test_run(capsys: pytest.CaptureFixture[str]) -> None:
    ran = document(["run", "kv_cache", "context=1024"], capsys)
    assert {"experiment", "question", "on", "passed", "verdict", "rows", "records"} <= ran.keys()
    assert {"case", "quantity", "theory", "simulated", "measured"} <= ran["rows"][0].keys()
    assert {"schema", "run", "problem", "metrics"} <= ran["records"][0].keys()


def test_env(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(["env"], capsys)
    assert {"versions", "cache", "records", "card", "driver", "works"} <= found.keys()
    assert found["versions"]["python"] == sys.version.split()[0]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["list"],
        ["explain", "model", "smollm2-135m"],
        CHECK,
        ["run", "machines"],
        ["env"],
        ["--help"],
        ["check", "--help"],
    ],
    ids=lambda a: " ".join(a[:2]),
)
def test_tables_for_people(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.waits.PATIENCE_S", 3600)  # a busy machine would be told what it waits for
    assert run_command(arguments) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) > 5
    assert said.err == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["chekc"], "unknown verb 'chekc'; verbs: list, explain, check"),
        (["check"], "Missing argument 'KERNEL'"),
        (["check", "gemm_v7", "m=1"], "unknown kernel 'gemm_v7'; known kernels: attention_fp8, "),
        (["check", "gemv_vectorized", "m=0", "n=8", "k=8"], "m must be from 1 to 2,147,483,647; m = 0"),
        (["check", "gemv_vectorized", "m=-3", "n=8", "k=8"], "m must be from 1 to 2,147,483,647; m = -3"),
        (["check", "gemv_vectorized", "m=1", "n=2147483648", "k=8"], "n must be from 1 to 2,147,483,647"),
        (["check", "gemv_vectorized", "m=1", "n=8", "k=1.5"], "k takes an integer; got '1.5'"),
        (["check", "gemv_vectorized", "m=1", "n=8", "k=12"], "needs k to be a multiple of 8"),
        (["check", "gemv_vectorized", "m=1", "n=8", "k=8", "weights=fp5"], "unknown format 'fp5'; known formats:"),
        (["check", "gemv_streamed", "m=1", "n=8", "k=8", "weights=fp8"], "takes weights in bf16 or fp16, not fp8"),
        (["check", "gemv_vectorized", "m=1", "n=8"], "k= must be given; names: m, n, k, weights"),
        (["check", "gemv_vectorized", "m=1", "n=1000000", "k=1000000"], "the H100 SXM 80 GB has 80,000,000,000 B"),
        ([*CHECK, "--schedule", "stages=4"], "has no schedule field 'stages'; its fields: rows"),
        ([*CHECK, "--schedule", "rows=3"], "rows must be one of 1, 2, 4, 8; rows = 3"),
        ([*CHECK, "--machine", "h1000"], "unknown machine 'h1000'; known machines: a100, h100, h200, b200"),
        ([*CHECK, "--on", "tpu"], "'tpu' is not one of"),
        ([*CHECK, "--nonsense"], "No such option: --nonsense"),
        (["check", "gemm_wgmma", "m=8", "n=8", "k=8", "--machine", "a100"], "needs architecture sm_90a; the A100"),
        (["explain", "conv", "m=1"], f"unknown kind 'conv'; kinds: {', '.join(QUESTIONS)}"),
        (["explain", "model"], "known models: llama-2-7b"),
        (["explain", "model", "gpt-5"], "unknown model 'gpt-5'; known models: llama-2-7b"),
        (["run", "nothing"], "unknown experiment 'nothing'; known experiments: attention_bars, attention_"),
        (["run", "kv_cache", "heads=3"], "unknown name 'heads'; names: layers, d"),
        (["run", "two_machines", "m=1"], "two machines need m of at least 2"),
        (["run", "two_machines", "gemm=gemm_v7"], "unknown kernel 'gemm_v7'"),
        (["run", "two_machines", "--machine", "a100"], "gemm_cluster needs architecture sm_90a; the A100"),
        (["run", "batching", "most=0"], "batching needs most of at least 1, rounds and seconds too"),
        (["run", "machines", "unit=fp5"], "unknown unit 'fp5'; units: bf16, fp32, fp8"),
        (["run", "kv_cache", "layers=0"], "layers and head_dim must be at least 1"),
        (["run", "decode_floor", "model=gpt-5"], "unknown model 'gpt-5'; known models: llama-2-7b"),
        (["compare", "/nowhere/a.jsonl", "b"], "is neither a records file nor the id or commit of a kept run"),
    ],
    ids=lambda a: " ".join(a)[:60] if isinstance(a, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = (one for one in said.err.splitlines() if not one.endswith(" ..."))  # what ends so says what is waited for
    assert line.startswith("lab: ")
    assert says in line


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
@pytest.mark.parametrize(
    "arguments",
    [
        [*CHECK, "--on", "gpu"],
        ["run", "ceilings", "--on", "gpu"],
        ["bench", "gemv_vectorized", "m=1", "n=8", "k=8"],
        ["counters", "gemv_vectorized", "m=1", "n=8", "k=8"],
        ["calibrate"],
    ],
    ids=lambda a: a[0],
)
def test_without_a_gpu_it_is_exit_code_3(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(arguments) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (EnvironmentFailure("the sky fell"), 4, "lab: the sky fell"),
        (KeyboardInterrupt(), 130, "lab: interrupted"),
        (ZeroDivisionError("by zero"), 70, "this is a bug in the lab (ZeroDivisionError: by zero); LAB_DEBUG=1"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_failures_have_their_exit_codes(
    error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(catalog, "kernels", fail)
    assert run_command(["list"]) == code
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1
    monkeypatch.setenv("LAB_DEBUG", "1")
    run_command(["list"])
    assert ("Traceback" in capsys.readouterr().err) == (code == 70)


def test_help_and_list_load_nothing_they_do_not_need() -> None:
    probe = """
import sys
from experiments.cli import run_command
assert run_command(["--help"]) == 0
heavy = [name for name in ("numpy", "numba", "rich", "msgspec", "lab") if name in sys.modules]
assert run_command(["list", "--json"]) == 0
assert run_command(["explain", "linear", "m=1", "n=8", "k=8", "--json"]) == 0
heavy += [name for name in ("numba",) if name in sys.modules]  # it takes longer to load than both to answer
gpu = [name for name in ("cupy", "cuda", "torch") if name in sys.modules]
assert run_command(["check", "gemv_vectorized", "m=1", "n=8", "k=8", "--json"]) == 0
gpu += [name for name in ("cupy", "torch") if name in sys.modules]
with open("/proc/self/maps") as maps:
    driver = "libcuda.so" in maps.read()
print(heavy, gpu, driver)
"""
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[] [] False"


def test_the_command_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "explain", "linear", "m=0", "n=1", "k=1"], capture_output=True
    )
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [sys.executable, "-m", "experiments", "run", "machines", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == 0


def test_a_wheel_outside_the_checkout_lists_checks_and_keeps_records(tmp_path: Path) -> None:
    source, target, elsewhere = (tmp_path / name for name in ("source", "target", "elsewhere"))
    for part in ("sim", "lab", "ptx", "experiments"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / part, source / part)
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    built = subprocess.run([*pip, "--target", str(target), str(source)], capture_output=True, text=True)
    if built.returncode and "Could not find a version" in built.stderr:
        pytest.skip("no network to fetch the build tool from")
    assert built.returncode == 0, built.stderr

    assert (target / "experiments" / "cli").is_dir()
    program = "import sys\nfrom experiments.cli import run_command\nfor line in sys.argv[1:]: run_command(line.split())"
    lines = ("env --json", "list --json", "check gemv_vectorized m=1 n=8 k=64 --json", "run machines --record")
    command = [sys.executable, "-c", program, *lines]
    environment = os.environ | {"PYTHONPATH": str(target)}
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    env, listed, checked, *_ = done.stdout.splitlines()
    assert env.count(str(elsewhere)) == 1
    assert [k["kernel"] for k in json.loads(listed)] == list(catalog.names())
    assert json.loads(checked)["passed"]
    assert (elsewhere / "lab-records" / "machines.jsonl").exists()


def test_every_verb_takes_json_and_help() -> None:
    for verb in cli.app.registered_commands:
        assert verb.callback is not None
        assert "as_json" in verb.callback.__annotations__
        assert verb.callback.__doc__


def test_all_experiments_run_one_after_another_and_one_that_cannot_stops_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "kv_cache" in runner.names()  # which stay its own
    monkeypatch.setattr("experiments.catalog.names", lambda: ("kv_cache", "peers", "machines"))
    assert run_command(["run", "all", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(one["experiment"], one["passed"]) for one in found] == [
        ("kv_cache", True),
        ("peers", False),
        ("machines", True),
    ]
    assert "unknown experiment 'peers'" in found[1]["failure"]
    assert "4.295 GB" in found[0]["verdict"]
    assert run_command(["run", "all", "d=4"]) == 2
    assert "options are an experiment's own" in capsys.readouterr().err
