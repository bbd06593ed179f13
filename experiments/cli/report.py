"""lab report: README's tables and rooflines from the records."""

from typing import Annotated, Any

import typer

from experiments.cli.options import Json
from experiments.cli.output import emit, say

Check = Annotated[bool, typer.Option("--check", help="Write nothing; exit code 1 where a file is not current.")]


def report(check: Check = False, as_json: Json = False) -> int:
    """Write README's tables and the rooflines anew from the committed records."""
    from experiments.tables.report import report as make
    from lab.record import archive

    past = archive()
    made = make(past)
    changed = [str(path) for path in (made.stale if check else made.write())]
    emit({"changed": changed, "complaints": list(past.complaints)}, as_json, _render)
    return 1 if check and changed else 0


def _render(document: dict[str, Any]) -> None:
    for complaint in document["complaints"]:
        say(complaint)
    for path in document["changed"]:
        say(f"changed: {path}")
    if not document["changed"]:
        say("everything is current")
