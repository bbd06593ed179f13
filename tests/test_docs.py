"""Every command and every snippet of README and docs runs, and every link leads somewhere.

A fenced block of commands is ```sh, one of Python ```python. Marked `gpu` it needs a GPU and is only parsed; marked
`slow` it runs with the deep tests, in a copy of the checkout.
"""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import experiments
import lab
from experiments.cli import app, examples, run_command
from experiments.tables.report import pages
from lab.record import ROOT

FENCE = re.compile(r"^```(sh|python)( gpu| slow)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ANY_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
OUTPUT = re.compile(r"^<!-- lab report: output (.+) -->$", re.MULTILINE)
INLINE = re.compile(r"`(lab [^`]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]+)?\)")
PATTERN = re.compile(r"\b[A-Z]{2,}\b|\.\.|\[")  # what stands for something else, as in `lab check KERNEL ...`
MOST_LINES = 150  # by hand on a page; all of README


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    mark: str
    text: str


def blocks() -> Iterator[Block]:
    for page in pages():
        for language, mark, text in FENCE.findall(page.read_text()):
            yield Block(page.name, language, mark.strip(), text)


def some(language: str, mark: str) -> Any:
    """The parameters of a test of all blocks of a language with a mark, as pytest takes them."""
    found = [block for block in blocks() if (block.language, block.mark) == (language, mark)]
    return pytest.mark.parametrize("block", found, ids=lambda block: f"{block.page}:{block.text.splitlines()[0]}")


def commands(text: str) -> list[list[str]]:
    """The words of each command of a block; a backslash goes on in the next line."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def quick() -> list[str]:
    """The commands that run here, each once; those whose output a page shows run where pages are made anew."""
    lines = [line for block in blocks() if (block.language, block.mark) == ("sh", "") for line in commands(block.text)]
    shown = {examples.EXPLAIN, examples.CHECK, *(name for page in pages() for name in OUTPUT.findall(page.read_text()))}
    return [line for line in dict.fromkeys(map(shlex.join, lines)) if line.removeprefix("lab ") not in shown]


@pytest.mark.parametrize("command", quick())
def test_commands_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(command)
    assert name == "lab", "only `lab` runs here; mark the block slow"
    held = (0, 1) if words[0] == "run" else (0,)  # a claim of the article may well be refuted
    assert run_command(words) in held


@some("python", "")
def test_snippets_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, block.page, "exec"), {"__name__": "snippet"})


@some("python", "gpu")
def test_snippets_for_a_gpu_are_python(block: Block) -> None:
    compile(block.text, block.page, "exec")


@pytest.mark.deep
@some("sh", "slow")
def test_slow_commands_run(block: Block, tmp_path: Path) -> None:
    files = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True).stdout.split(b"\0")
    for file in filter(None, map(os.fsdecode, files)):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    subprocess.run(["sh", "-e", "-c", block.text], cwd=tmp_path, check=True)


def test_every_command_can_be_parsed() -> None:
    found = {" ".join(words): words for block in blocks() for words in commands(block.text) if block.language == "sh"}
    for page in pages():
        inline = INLINE.findall(ANY_FENCE.sub("", page.read_text()))
        whole = (text for text in inline if len(text.split()) > 2 and not PATTERN.search(text))
        found |= {text: shlex.split(text) for text in whole}
    verbs: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    ours = {text: words[1:] for text, words in found.items() if words[0] == "lab" and not words[1].startswith("-")}
    assert len(ours) > 20
    for text, words in ours.items():
        verb = max((" ".join(words[:n]) for n in (1, 2) if " ".join(words[:n]) in verbs), key=len, default="")
        assert verb, text
        verbs[verb].make_context(verb, words[len(verb.split()) :])


def test_all_that_python_offers_is_in_the_docs() -> None:
    text = (ROOT / "docs" / "python.md").read_text()
    for package in (lab, experiments):
        for name in package.__all__:
            assert f"{package.__name__}.{name}" in text, name


def test_every_link_leads_to_a_file() -> None:
    for page in (*pages(), ROOT / "CONTRIBUTING.md"):
        for target, _ in LINK.findall(page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_of_docs_is_linked() -> None:
    linked = {(page.parent / target).resolve() for page in pages() for target, _ in LINK.findall(page.read_text())}
    assert set(pages()[1:]) <= linked


def test_pages_stay_short() -> None:
    readme, *docs = pages()
    assert len(readme.read_text().splitlines()) <= MOST_LINES
    for page in docs:
        by_hand = re.sub(r"^<!-- lab report: .*?^<!-- end of", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        assert len(by_hand.splitlines()) <= MOST_LINES, page.name
