"""`lab bench serve`: vLLM's keys, the same figures again, a journal that replays, and bad input in a sentence."""

import json
from pathlib import Path

import pytest

from experiments.cli import run_command

WORDS = ["bench", "serve", "--model", "smollm2-135m", "--num-prompts", "6", "--random-input-len", "100", "--json"]
WORDS += ["--random-output-len", "5", "--max-num-batched-tokens", "300"]
# The keys that vllm/benchmarks/serve.py of vLLM writes for every run.
VLLM = [
    "date",
    "backend",
    "model_id",
    "tokenizer_id",
    "num_prompts",
    "request_rate",
    "burstiness",
    "max_concurrency",
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "output_throughput",
    "total_token_throughput",
    "max_output_tokens_per_s",
    "max_concurrent_requests",
    "mean_ttft_ms",
    "median_ttft_ms",
    "std_ttft_ms",
    "p99_ttft_ms",
    "mean_tpot_ms",
    "median_tpot_ms",
    "std_tpot_ms",
    "p99_tpot_ms",
    "mean_itl_ms",
    "median_itl_ms",
    "std_itl_ms",
    "p99_itl_ms",
    "mean_e2el_ms",
    "median_e2el_ms",
    "std_e2el_ms",
    "p99_e2el_ms",
]
OURS = [
    "max_itl_ms",
    "kv_bytes",
    "kv_waste",
    "preemptions",
    "prefix_hits",
    "host_us",
    "idle_fraction",
    "clock",
    "machine",
    "policy",
    "steps",
]


def document(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert run_command([*WORDS, *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_has_vllms_keys_and_ours_and_is_the_same_again(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--goodput", "ttft:500")
    assert {*VLLM, *OURS, "request_goodput"} <= found.keys()
    assert (found["completed"], found["total_input_tokens"], found["total_output_tokens"]) == (6, 600, 30)
    again = document(capsys, "--goodput", "ttft:500")
    assert {**found, "date": ""} == {**again, "date": ""}


def test_shared_prefixes_are_found_once_they_are_computed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--random-prefix-len", "128", "--max-concurrency", "1"]
    assert document(capsys, *words)["prefix_hits"] == 5 * 128
    assert document(capsys, *words, "--no-enable-prefix-caching")["prefix_hits"] == 0


def test_all_times_and_decisions_are_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines, result = tmp_path / "decisions.jsonl", tmp_path / "result.json"
    found = document(capsys, "--journal", str(lines), "--save-result", "--result-filename", str(result))
    kept = json.loads(result.read_text())
    assert len(kept["ttfts"]) == len(kept["itls"]) == 6
    assert 1e3 * sum(kept["ttfts"]) / 6 == pytest.approx(found["mean_ttft_ms"])
    assert run_command(["journal", str(lines), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"steps": found["steps"], "other": None, "same": True}


def test_two_journals_are_the_same_until_they_depart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{tokens}.jsonl") for tokens in (300, 260)]
    for path, tokens in zip(paths, ("300", "260"), strict=True):
        document(capsys, "--journal", path, "--max-num-batched-tokens", tokens)
    assert run_command(["journal", *paths]) == 1
    said = capsys.readouterr().out
    assert "after 0 equal decisions" in said
    assert paths[1] in said
    assert run_command(["journal", *paths, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["departs"][:2] == ["step", 0]
    assert run_command(["journal", paths[0], paths[0]]) == 0
    (tmp_path / "none.jsonl").write_text("[]\n")
    assert run_command(["journal", str(tmp_path / "none.jsonl")]) == 2
    assert "line 1 is no line of a journal" in capsys.readouterr().err


def test_a_table_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([word for word in WORDS if word != "--json"]) == 0
    out = capsys.readouterr().out
    assert "longest gap between tokens, ms" in out
    assert "times by the predicted clock" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dataset-name", "sharegpt"], "unknown dataset 'sharegpt'"),
        (["--goodput", "fast"], "a goodput limit is"),
        (["--metric-percentiles", "50,x"], "percentiles are numbers from 0 to 100"),
        (["--model", "gpt-5"], "unknown model 'gpt-5'"),
        (["--max-num-seqs", "300"], "more tokens than rows"),
        (["--preemption", "drop"], "preemption is recompute, swap or cheaper"),
        (["--num-gpu-blocks", "2"], "1 pages cannot hold them"),
        (["--request-rate", "-1"], "above 0"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command([word for word in [*WORDS, *words] if word != "--json"]) == 2
    said = capfd.readouterr().err.strip().splitlines()
    assert says in said[-1]


def test_a_server_is_measured_as_its_clients_see_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="running a server needs the extra `test`")
    pytest.importorskip("starlette", reason="serving needs the extra `serve`")
    from tests.lab.serving.server import serving

    with serving("smollm2-135m", "--max-model-len", "512", "--served-model-name", "it") as server:
        result = tmp_path / "result.json"
        words = ["--model", "it", "--base-url", server.url, "--save-result", "--result-filename", str(result)]
        found = document(capsys, *words, "--max-concurrency", "2")
        assert {*VLLM, "max_itl_ms"} <= found.keys()
        assert (found["completed"], found["failed"], found["total_output_tokens"]) == (6, 0, 30)
        assert found["max_concurrent_requests"] <= 2
        assert (found["clock"], found["machine"]) == ("wall", None)
        assert min(json.loads(result.read_text())["ttfts"]) > 0
        assert document(capsys, "--model", "other", "--base-url", server.url)["failed"] == 6
    assert run_command([*WORDS, "--base-url", server.url]) == 4
    assert "there is no server at" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--replicas", "2"], ["--disaggregate", "1:1"]])
def test_several_gpus_are_predicted_under_the_same_keys(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*WORDS, *words]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["completed"] == 6
    assert document["gpus"] == words[0].strip("-") + "=" + words[1]
    assert all(key in document for key in VLLM)
    assert ("push_share" in document) == (words[0] == "--disaggregate")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--replicas", "2", "--disaggregate", "1:1"], "one set-up of several GPUs at a time"),
        (["--disaggregate", "1"], "disaggregate takes P:D"),
        (["--tensor-parallel", "2"], "2 ranks cannot share q_heads = 9 evenly"),
        (["--tensor-parallel", "3"], "tensor parallelism is of two GPUs; got 3"),
        (["--replicas", "2", "--on", "gpu"], "several GPUs are predicted here, not measured"),
        (["--replicas", "2", "--journal", "x"], "a journal is of one loop's decisions"),
    ],
)
def test_what_several_gpus_cannot_do_is_said(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([*WORDS, *words]) != 0
    assert sentence in "".join(capsys.readouterr())
