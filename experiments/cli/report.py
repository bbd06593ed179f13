"""lab report: tables and pictures of README and docs from the records."""

from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli.options import Json
from experiments.cli.output import emit, say
from experiments.cli.waiting import working

Check = Annotated[
    bool, typer.Option("--check", help="Write nothing; exit code 1 where a file is not what the records make of it.")
]

Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write them all as one HTML page, and neither README nor docs."),
]


def report(check: Check = False, html: Html = None, as_json: Json = False) -> int:
    """Write the tables and pictures of README and docs anew from the records, and say which figures are in doubt."""
    from experiments.tables.report import report as make
    from lab.record import archive
    from sim.errors import InputError
    from sim.folders import write_whole

    if check and html:
        raise InputError("--check writes nothing, --html a file: give one of them")

    with working("making the tables from the records"):
        past = archive()
        made = make(past)
        if html:
            from experiments.tables.page import html as page

            write_whole(html, page(made).encode())
        changed = [str(html)] if html else [str(path) for path in (made.outdated if check else made.write())]
    document = {"written": not check, "changed": changed, "doubts": made.doubts, "complaints": past.complaints}
    emit(document, as_json, _render)
    return 1 if check and changed else 0


def _render(document: dict[str, Any]) -> None:
    for sentence in (*document["complaints"], *document["doubts"]):
        say(sentence)
    for path in document["changed"]:
        say(
            f"changed: {path}"
            if document["written"]
            else f"{path} is not what the records make of it; lab report writes it"
        )
    if not document["changed"]:
        say("everything is current")
