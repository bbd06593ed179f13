"""What the system refuses ends in one sentence and code 4, or does not matter."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import run_command
from experiments.cli.output import emit

LAB = f"{sys.executable} -m experiments"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=60, env=os.environ | environment, check=False
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_standard_output(unbuffered: str) -> None:
    done = shell(f"{LAB} --help > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize(
    ("redirection", "code"), [(">&-", 0), ("<&- >&- 2>&-", 0), ("nonsense 2>/dev/full", 2), ("nonsense 2>&-", 2)]
)
def test_closed_and_full_streams(redirection: str, code: int) -> None:
    done = shell(f"{LAB} {'--help' if code == 0 else ''} {redirection}")
    assert (done.returncode, done.stdout) == (code, "")


def test_a_narrow_encoding_and_the_name_of_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    done = shell(f"{LAB} env --json", LAB_CACHE_DIR=name, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert json.loads(done.stdout)["cache"] == name
    done = shell(f"{LAB} compare '{name}' '{name}é'", PYTHONIOENCODING="ascii")
    said = [line for line in done.stderr.splitlines() if not line.endswith("...")]  # what a slow machine waits for
    assert (done.returncode, len(said)) == (2, 1)


@pytest.mark.parametrize(
    "setting", ["NUMBA_DISABLE_JIT=1", "NUMBA_NUM_THREADS=0", "NUMBA_THREADING_LAYER=nonsense", "PYTHONOPTIMIZE=2"]
)
def test_settings_that_cannot_work_are_named(setting: str) -> None:
    name, _, value = setting.partition("=")
    done = shell(f"{LAB} check gemv_naive m=1 n=8 k=8", **{name: value})
    (said,) = [line for line in done.stderr.splitlines() if not line.endswith(" ...")]
    assert (done.returncode, name in said) == (4, True)


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"é": ["🙂", 1.5, None], "file": "\udcff"}
    emit(document, True, print)
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == document


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/somewhere/file"),
            "No space left on device: /somewhere/file",
        ),
        (PermissionError(errno.EACCES, "Permission denied", b"/root/\xff"), "Permission denied: /root/"),
        (MemoryError("Unable to allocate 8 TiB"), "there is not enough memory: Unable to allocate 8 TiB"),
        (MemoryError(), "there is not enough memory"),
    ],
)
def test_what_the_system_refuses_is_no_bug(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise error

    monkeypatch.setattr("lab.catalog.kernels", refused)
    assert run_command(["list"]) == 4
    said = capsys.readouterr().err
    assert said.startswith("lab: ")
    assert says in said
    assert "bug" not in said
