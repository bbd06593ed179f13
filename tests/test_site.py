"""The site: every page has its place in it, it builds without a broken link, and it needs nothing from elsewhere."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.tables.report import pages
from lab.record import ROOT

LOADED = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=\"?((?:https?:)?//[^\s\">]+)")


def build(config: Path, into: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", config, "--site-dir", into]
    return subprocess.run(command, capture_output=True, text=True)


def leaves(nav: Any) -> Iterator[str]:
    """The pages of a nav, in its order."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(entry)


def test_every_page_stands_in_the_nav_once() -> None:
    from mkdocs.config import load_config  # here, so that tests for a GPU are collected without it

    shown = list(leaves(load_config(str(ROOT / "mkdocs.yml")).nav))
    assert sorted(shown) == sorted(page.name for page in pages()[1:])


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    built = build(ROOT / "mkdocs.yml", tmp_path)
    assert built.returncode == 0, built.stderr
    made = list(tmp_path.rglob("*.html"))
    assert len(made) >= len(pages()) - 1
    for page in made:
        assert not LOADED.findall(page.read_text()), page.name
        assert "```" not in page.read_text(), page.name  # a fence that was not understood
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(\"?(https?:)?//", style.read_text()), style.name


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("[a](nowhere.md) [b](other.md) [c](other.md#no_heading)")
    (docs / "other.md").write_text("# Other")
    config = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[0]
    (tmp_path / "mkdocs.yml").write_text(config)
    built = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert built.returncode != 0
    assert all(link in built.stderr + built.stdout for link in ("nowhere.md", "no_heading"))
    (docs / "index.md").write_text("[b](other.md)")
    assert build(tmp_path / "mkdocs.yml", tmp_path / "site").returncode == 0


def test_the_commands_that_contributors_run_are_those_of_ci() -> None:
    fence = re.search(r"```text\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert fence
    ran = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in ran if line in fence[1].splitlines()] == fence[1].splitlines()
