"""lab calibrate: what it writes where, and what it says where it cannot measure."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from experiments.cli import calibrate as verb
from experiments.cli import run_command
from lab import cards, record
from lab.cards import files
from lab.gpu import device, worker
from lab.gpu.calibrate import Progress
from sim.machine import H100


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The user's folder, and a place for what would go into the checkout."""
    monkeypatch.setenv("LAB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setattr(files, "COMMITTED", tmp_path / "checkout")
    files.forget()
    yield tmp_path
    files.forget()


def document(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    assert run_command(["calibrate", *arguments, "--json"]) == code
    said = capsys.readouterr()
    assert said.err == ""
    return json.loads(said.out)


def test_from_records(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = document(["--from-records", "H100"], capsys)
    assert made["path"] == str(folder / "cards" / "h100.json")
    assert cards.calibration(H100) == msgspec.convert(made["calibration"], cards.Calibration)
    assert "launch_us.chain" in made["not_measured"]
    assert run_command(["calibrate", "--from-records", "h100", "--into-checkout"]) == 0
    said = capsys.readouterr().out
    assert "read of 2 MiB, cold, TB/s" in said
    assert "not measured: l2_bytes" in said
    assert (folder / "checkout" / "h100.json").read_text() == (folder / "cards" / "h100.json").read_text()


def test_what_the_worker_measured_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cards.Calibration(machine="my-card", card="My Card")

    def stream(function: Callable[[Any], Any], argument: Any, deadline_s: float) -> Iterator[Any]:
        assert function is verb.on_device
        assert argument["origin"]["run"]
        assert deadline_s == 99
        for done in (1, 2):
            yield msgspec.to_builtins(Progress("a step", done, 2, whole))

    monkeypatch.setattr(worker, "stream", stream)
    monkeypatch.setattr(device, "require_device", lambda: None)
    made = document(["--deadline", "99"], capsys)
    assert made["calibration"]["card"] == "My Card"
    assert (folder / "cards" / "my-card.json").exists()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--from-records", "v100"], 2, "unknown machine 'v100'"),
        (["--from-records", "a100"], 2, "no record of the experiment ceilings was measured on an A100"),
        (["--from-records", "h100", "--into-checkout"], 2, "--into-checkout needs a checkout"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    arguments: list[str],
    code: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record, "in_checkout", lambda: False)
    assert run_command(["calibrate", *arguments]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert says in said.err


def test_a_machine_from_a_file_reaches_every_word_of_a_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "half.json"
    half = {field: getattr(H100, field) for field in H100.__dataclass_fields__}
    half |= {"name": "half", "title": "half an H100", "peaks": dict(H100.peaks), "sms": 66, "gpcs": [18, 16, 16, 16]}
    path.write_text(json.dumps(half))
    problem = ["m=1", "n=64", "k=64"]
    for words in (["explain", "linear"], ["check", "gemv_vectorized"]):
        assert run_command([*words, *problem, "--machine", str(path)]) == 0
        assert "half an H100" in capsys.readouterr().out
        assert run_command([*words, *problem, "--machine", "Half", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["machine"] == "half"
