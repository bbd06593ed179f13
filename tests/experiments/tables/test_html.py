"""All tables and pictures as one HTML page."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.chart import Chart, Series
from experiments.cli import run_command
from experiments.tables.drawing import draw
from experiments.tables.page import html
from experiments.tables.report import FOLDER, Report
from lab.record import ROOT

CHART = Chart("a & b", "x", "y", (Series("k", [(1.0, 2.0), (2.0, 3.0)], titles=["rows=1 <b>", "rows=2"]),))


class Tags(HTMLParser):
    """How often each tag begins, and what it refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


def block(name: str, text: str) -> str:
    return f"<!-- lab report: {name} -->\n{text}\n<!-- end of {name} -->\n"


def test_tables_and_pictures_are_shown_and_what_looks_like_html_is_text() -> None:
    table = "| kernel | us |\n| --- | --- |\n| `a<b>` | <script>1</script> [there](gemm.md) |"
    text = "# First\n\nprose\n\n## Part\n\n" + block("t", table) + block("pictures p", "![c](pictures/c.svg)")
    text += block("source x", "```cuda\n```")
    page = html(Report({ROOT / "docs" / "a.md": text}, {ROOT / FOLDER / "c.svg": CHART}))
    tags = Tags()
    tags.feed(page)
    assert (tags.seen.count("table"), tags.seen.count("svg"), tags.seen.count("script")) == (1, 1, 0)
    assert "&lt;script&gt;" in page
    assert "there" in page
    assert all(link.startswith("#") for link in tags.links), "the page needs no other file"
    assert "prose" not in page


def test_dots_say_what_they_are() -> None:
    titles = re.findall(r"<use [^>]*><title>(.*?)</title></use>", draw(CHART))
    assert titles == ["rows=1 &lt;b&gt;", "rows=2"]


def test_the_verb_writes_the_page_and_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.tables.report.report", lambda _: Report({}, {}))
    file = tmp_path / "new" / "results.html"
    assert run_command(["report", "--html", str(file)]) == 0
    assert file.read_text().startswith("<!doctype html>")
    assert run_command(["report", "--html", str(file), "--check"]) == 2
