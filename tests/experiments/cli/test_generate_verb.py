"""The `generate` verb: text, table, JSON, exit codes."""

import json
from pathlib import Path

import pytest

from experiments.cli import run_command
from lab import record
from tests.lab.inference import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model") / "tiny.gguf")


def test_json_is_one_document_and_nothing_else(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["generate", "in the", "--model", str(model), "--max-tokens", "3", "--json"]) == 0
    said = capfd.readouterr()
    document = json.loads(said.out)
    assert all(line.startswith("lab: ") for line in said.err.splitlines())  # what it waits for, on a slow machine
    assert (document["prompt"], document["on"], document["machine"]) == ("in the", "sim", "h100")
    assert len(document["tokens"]) == 3
    for phase in document["phases"]:
        assert {"tokens", "bytes", "flops", "intensity", "regime", "us", "floor_us"} <= phase.keys()
        assert phase["bytes"].keys() == {"weights", "kv", "activations", "total"}


def test_text_comes_first_and_then_the_table(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "in", "--model", str(model), "--max-tokens", "4", "--on", "reference", "--machine", "a100"]
    assert run_command(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("in")
    assert out.index("prefill") < out.index("floor, us")
    assert "A100 SXM 40 GB" in out


@pytest.mark.parametrize("on", ["sim", "reference"])
def test_a_folder_is_a_model_too(tmp_path: Path, capsys: pytest.CaptureFixture[str], on: str) -> None:
    from tests.lab.inference import tiny_folder

    folder = tiny_folder.write(tmp_path / "tiny-qwen", "qwen3")
    assert run_command(["generate", "in the", "--model", str(folder), "--max-tokens", "3", "--on", on, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["model"], len(document["tokens"])) == ("tiny-qwen", 3)
    (folder / "tokenizer.json").unlink()
    assert run_command(["generate", "in the", "--model", str(folder)]) == 2
    assert "tokenizer.json is missing" in capsys.readouterr().err


def test_the_terminal_obeys_no_control_character_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = [t if i < 3 else "\x1b[2J" for i, t in enumerate(tiny.TOKENS)]
    tokens = [t + str(i) if t.startswith("\x1b") else t for i, t in enumerate(tokens)]
    tokens[3:259] = tiny.TOKENS[3:259]
    kinds = [3] * 3 + [1] * 256 + [4] * (tiny.VOCAB - 259)
    hostile = tiny.write(
        tmp_path / "hostile.gguf",
        {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["i n"], "tokenizer.ggml.token_type": kinds},
    )
    run_command(["generate", "in", "--model", str(hostile), "--max-tokens", "60", "--on", "reference"])
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--max-tokens", "0"], 2, "max-tokens"),
        (["--max-tokens", "100000"], 2, "the model's context is 400"),
        (["--machine", "h9000"], 2, "unknown machine 'h9000'; known machines: a100"),
        (["--on", "tpu"], 2, "'tpu' is not one of"),
        (["--temperature", "-1"], 2, "temperature must be from 0 to 100"),
        (["--model", "/nowhere/x.gguf"], 2, "cannot be read"),
    ],
)
def test_bad_input_is_one_line(
    model: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    assert run_command(["generate", "in", "--model", str(model), *words]) == code
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_truncated_file_is_one_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:5000])
    assert run_command(["generate", "in", "--model", str(cut)]) == 2
    assert "is not a usable GGUF model: it is truncated" in capsys.readouterr().err


def test_a_generation_on_a_chip_leaves_a_record_of_each_phase_when_asked(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "folder", lambda: tmp_path)
    words = ["generate", "in", "--model", str(model), "--max-tokens", "3", "--json"]
    assert run_command(words) == 0
    assert not (tmp_path / "generate.jsonl").exists()
    assert run_command([*words, "--record"]) == 0
    kept = record.read([tmp_path / "generate.jsonl"]).records
    assert [r.metrics["phase"] for r in kept] == ["prefill", "decode"]
    assert all(r.predicted_us and r.us is None and r.experiment == "generate" for r in kept)
    assert kept[0].simulated is not None
