"""Files are put in place whole or not at all, and a user without a home is told what to set."""

import os
from pathlib import Path

import pytest

from sim import folders
from sim.errors import EnvironmentFailure
from sim.folders import cache_dir, cache_path, config_path, write_whole


def test_a_file_is_replaced_whole_and_its_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for data in (b"first", b"second, longer"):
        write_whole(path, data)
        assert path.read_bytes() == data
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["chmod", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_whole(tmp_path / "file", b"old")
    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("LAB_CACHE_DIR", "LAB_CONFIG_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(folders.Path, "home", homeless)
    assert not config_path().exists()
    monkeypatch.setattr(folders.os, "access", lambda *_: False)
    monkeypatch.setattr(folders.Path, "mkdir", lambda *_, **__: None)
    with pytest.raises(
        EnvironmentFailure, match=f"the cache folder {cache_path()} cannot be written; set LAB_CACHE_DIR"
    ):
        cache_dir()
    monkeypatch.setenv("LAB_CACHE_DIR", "here")
    assert cache_path() == Path("here")
