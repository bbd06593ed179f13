"""The kernel of docs/first-kernel.md, taken from the page: found, right, and counted alike by all three."""

import re

import pytest

from experiments.cli import run_command
from lab.record import ROOT
from tests.experiments.cli.conftest import Draft

PAGE = (ROOT / "docs" / "first-kernel.md").read_text(encoding="utf-8")
CODE, DESCRIPTION = (
    re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[0] for kind in ("cuda", "py")
)
COMMANDS = [line.split()[1:] for line in PAGE.splitlines() if line.startswith("lab ")]


def test_its_commands_run(draft: Draft, capsys: pytest.CaptureFixture[str]) -> None:
    draft(DESCRIPTION, CODE, "gemv_pairs")
    assert [words[0] for words in COMMANDS] == ["list", "check", "check", "explain"]
    for words in COMMANDS:
        assert run_command(words) == 0, capsys.readouterr().err
        assert "gemv_pairs" in capsys.readouterr().out
