"""The reference of the `lab` command: a page made of what its verbs and experiments say of themselves."""

from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from typing import Any

from typer.main import get_command

from experiments import markdown, runner
from experiments.catalog import questions
from experiments.cli import app
from experiments.words import spell
from lab.record import Archive

SAID_ONCE = ("--json",)  # of every verb, which the page says by hand


def table(past: Archive) -> str:  # noqa: ARG001  (no record says what verbs there are)
    """Each verb with its arguments and options, then each experiment with its own."""
    verbs: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    parts = [part for name in sorted(verbs) for part in _verb(name, verbs[name])]
    asked = [[f"`{name}`", question, _options(name)] for name, question in questions().items()]
    experiments = markdown.table(["experiment", "question", "options and their defaults"], asked)
    return "\n\n".join(part for part in [*parts, "## Experiments", experiments] if part)


def _verb(name: str, command: Any) -> Iterator[str]:
    taken = [p for p in command.params if p.param_type_name == "argument"]
    words = (p.metavar if p.required else f"[{p.metavar}]" for p in taken)
    yield f"## `{' '.join(['lab', name, *words])}`"
    yield " ".join(command.help.split())
    yield "\n".join(f"- `{p.metavar}`: {p.help}" for p in taken)
    options = [p for p in command.params if p not in taken and not set(SAID_ONCE) & set(p.opts)]
    rows = [[f"`{_spelled(p)}`", p.help or "", _default(p.default)] for p in options]
    yield markdown.table(["option", "", "default"], rows) if rows else ""


def _spelled(option: Any) -> str:
    both = "/".join([*option.opts, *option.secondary_opts])
    return f"{both} {option.metavar}" if option.metavar else both


def _default(value: Any) -> str:
    shown = value.value if isinstance(value, Enum) else value
    return f"`{shown}`" if isinstance(shown, str | float | int) and shown is not False and shown != "" else ""


def _options(name: str) -> str:
    """The words of an experiment's options at their defaults."""
    words = spell({f.name: f.default for f in fields(runner.get(name).Options)})
    return f"`{words}`" if words else ""
