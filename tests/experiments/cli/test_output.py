"""What people see: whole words at any width, plain lines in a pipe, PASS and FAILED, what a wait waits for."""

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.cli import run_command
from experiments.cli.output import conclude, say, table
from experiments.cli.waiting import working
from lab import catalog
from sim import waits

LAB = [sys.executable, "-m", "experiments"]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
WAITING = "lab: reading the files of all kernels ..."
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")


def on_terminal(arguments: list[str], columns: int, **environment: str) -> tuple[int, str]:
    """(exit code, what a terminal of so many columns is sent on both streams)."""
    shown, end = pty.openpty()
    given = os.environ | {"COLUMNS": str(columns), "TERM": "xterm-256color"} | environment
    with subprocess.Popen([*LAB, *arguments], stdout=end, stderr=end, env=given) as child:
        os.close(end)
        said = b""
        while True:
            try:
                part = os.read(shown, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            said += part
    os.close(shown)
    return child.returncode, said.decode().replace("\r\n", "\n")


def be_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Let standard output be a terminal of so many columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_list_shows_every_name_whole_within_the_width(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be_terminal(monkeypatch, columns)
    assert run_command(["list"]) == 0
    said = ESCAPES.sub("", capsys.readouterr().out)
    assert max(map(len, said.splitlines())) <= columns
    assert "…" not in said
    words = set(said.split())
    assert all({kernel.name, *kernel.adds.split()} <= words for kernel in catalog.kernels())


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("arguments", [["run", "kv_cache", "batch=64"], ["run", "machines"], ["compare"], ["env"]])
def test_tables_keep_words_whole_at_any_width(
    arguments: list[str], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be_terminal(monkeypatch, columns)
    assert run_command(arguments) == 0
    said = ESCAPES.sub("", capsys.readouterr().out)
    assert "…" not in said
    shown = {word.rstrip(":") for word in said.split()}  # of a block, headings end in colons
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert run_command(arguments) == 0
    piped = {word.rstrip(":") for word in capsys.readouterr().out.split()}
    assert piped - {"-", "run"} <= shown  # "run" heads the first cell of a block
    long = max(map(len, shown))
    assert max(map(len, said.splitlines())) <= max(columns, long + len("  works: "))


def test_a_pipe_gets_one_plain_line_a_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert run_command(["list"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    for kernel in catalog.kernels():
        (line,) = [line for line in out.splitlines() if line.startswith(f"{kernel.name} ")]
        assert line.endswith(kernel.adds)


def test_pass_is_said_and_coloured_on_a_terminal() -> None:
    code, said = on_terminal(["run", "kv_cache"], 100)
    assert code == 0
    assert "PASS: 1 sequence(s)" in ESCAPES.sub("", said)
    assert COLOUR.search(said)


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_are_where_they_are_wanted(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be_terminal(monkeypatch, 100)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    conclude(True, "so it is")
    assert bool(COLOUR.search(capsys.readouterr().out)) == (not environment)


def test_an_ascii_terminal_gets_ascii() -> None:
    code, said = on_terminal(["list", "kernels"], 140, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONCOERCECLOCALE="0")
    assert code == 0
    assert said.isascii()
    assert "\\u" not in said


def test_a_reader_of_one_line_and_a_full_disk() -> None:
    done = subprocess.run(["sh", "-c", f"{' '.join(LAB)} list | head -1"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert set(done.stderr.splitlines()) <= {WAITING}
    done = subprocess.run(["sh", "-c", f"{' '.join(LAB)} list > /dev/full"], capture_output=True, text=True, timeout=60)
    (failure,) = set(done.stderr.splitlines()) - {WAITING}
    assert (done.returncode, "No space left on device" in failure) == (4, True)


def test_a_table_of_words_too_long_for_the_terminal_is_one_block_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be_terminal(monkeypatch, 20)
    table(["kernel", "adds", "us"], [["a_name_of_23_characters", "one two three four five", "-"]], numbers_from=2)
    out = capsys.readouterr().out
    assert out == "a_name_of_23_characters\n  adds: one two\n    three four five\n\n"
    say("one two three four five")
    assert capsys.readouterr().out == "one two three four\nfive\n"


def test_failed_is_said_where_nothing_is_coloured(capsys: pytest.CaptureFixture[str]) -> None:
    for passed in (True, False, None):
        conclude(passed, "so it is")
    assert capsys.readouterr().out == "PASS: so it is\nFAILED: so it is\nso it is\n"


def test_a_wait_says_what_it_waits_for_as_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waits, "PATIENCE_S", 0.05)
    with working("checking") as now:
        now("compiling")
        time.sleep(0.3)
        now("simulating")
        now("emulating")
        time.sleep(0.3)
    with working("quick"):
        pass
    time.sleep(0.2)
    assert capsys.readouterr().err == "lab: checking: compiling ...\nlab: checking: emulating ...\n"


def test_run_help_names_the_options_of_the_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "kv_cache", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "How large does the KV cache get" in out
    assert "layers=32 d=4096 head_dim=128 batch=1 context=8192" in out
    assert run_command(["run", "--help"]) == 0
    assert "kv_cache How large does the KV cache get" in " ".join(capsys.readouterr().out.split())


def test_help_gives_each_verbs_whole_first_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    out = capsys.readouterr().out
    assert "and every experiment." in " ".join(out.split())


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_COMMIT", "0123456789abcdef-dirty")
    assert run_command(["--version"]) == 0
    assert re.fullmatch(
        r"lab (\d+\.\d+\.\d+|\(not installed\)), commit 01234567 with changes\n", capsys.readouterr().out
    )


@pytest.mark.parametrize("stranger", ["lab/__init__.py", "sim.py"])
def test_another_package_of_our_name_is_refused(stranger: str, tmp_path: Path) -> None:
    other = tmp_path / stranger
    other.parent.mkdir(exist_ok=True)
    other.write_text("")
    start = f"import sys; sys.path.append({os.getcwd()!r}); from experiments.__main__ import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", start, "list"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)
    assert str(other.parent if stranger.startswith("lab") else other) in done.stderr
    assert "in place of the lab's own" in done.stderr
