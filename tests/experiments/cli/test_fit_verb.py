"""lab fit: what it writes, what it only says, and what it refuses."""

import json
from pathlib import Path

import msgspec
import pytest

from experiments.cli import run_command
from lab import record
from lab.cards import fits
from lab.record import Archive
from tests.experiments.test_fitting import times


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of fits, and records whose times a memory a fifth slower would have made."""
    launches = times({"hbm_share": 0.8})
    monkeypatch.setattr(record, "archive", lambda: Archive(tuple(launch.record for launch in launches)))
    path = tmp_path / "fits.jsonl"
    path.write_bytes(fits.TABLE.read_bytes())
    monkeypatch.setattr(fits, "TABLE", path)
    return path


def test_it_writes_the_lines_it_shows(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = table.read_bytes()
    assert run_command(["fit", "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert not said["written"]
    assert table.read_bytes() == before
    assert run_command(["fit", "--kernel", "gemv_mma"]) == 0
    assert "gemv_mma" in capsys.readouterr().out
    found = [fit for fit in fits.load(table) if fit.model == "gemv_mma"]
    assert msgspec.to_builtins(found) == said["fits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernel", "gemv_magic"], "gemv_magic"),
        (["--kernel", "gemm_cluster"], "too few launches"),
    ],
)
@pytest.mark.usefixtures("table")
def test_what_cannot_be_fitted_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["fit", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1


@pytest.mark.usefixtures("table")
def test_outside_a_checkout_it_only_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(record, "in_checkout", lambda: False)
    assert run_command(["fit"]) == 2
    assert "only --dry-run" in capsys.readouterr().err
