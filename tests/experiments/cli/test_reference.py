"""The reference of the command line has every verb, option and experiment, whoever adds one."""

from typing import Any

import pytest
from typer.main import get_command

from experiments.catalog import questions
from experiments.cli import app, examples, reference
from lab.record import Archive
from sim.errors import LabError


def test_every_verb_option_and_experiment_is_in_it() -> None:
    text = reference.table(Archive(()))
    verbs: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    for name, command in verbs.items():
        section = text.split(f"## `lab {name}")[1].split("\n## ")[0]
        for parameter in command.params:
            spelled = parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
            assert spelled in section or spelled in reference.SAID_ONCE, (name, spelled)
    for name, question in questions().items():
        assert f"| `{name}` | {question} |" in text


def test_an_example_that_fails_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "EXPLAIN", "explain nonsense")
    with pytest.raises(LabError, match="lab explain nonsense failed"):
        examples.table(Archive(()))
