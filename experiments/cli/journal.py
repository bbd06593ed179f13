"""lab journal: a loop's decisions made again, or held against another loop's."""

from itertools import tee
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli.options import Json
from experiments.cli.output import conclude, emit
from experiments.cli.waiting import working

File = Annotated[Path, typer.Argument(metavar="FILE", help="What lab serve or lab bench serve wrote by --journal.")]
Other = Annotated[Path | None, typer.Argument(metavar="[OTHER]", help="A journal to hold it against.")]


def journal(file: File, other: Other = None, as_json: Json = False) -> int:
    """Make a journal's decisions again from its requests and results, or show where another journal's depart.

    Exit code 1 where a decision is another one.
    """
    with working(f"reading {file.name}"):
        from lab.serving.journal import decisions, first_difference, read, replay

        if other:
            found = first_difference(decisions(read(file)), decisions(read(other)))
        else:
            # Both walk through one file at a time, a decision behind the other.
            lines, again = tee(read(file))
            found = first_difference(decisions(lines), replay(again))
        steps = sum(1 for _ in decisions(read(file)))
    document: dict[str, Any] = {"steps": steps, "other": str(other) if other else None, "same": found is None}
    if found:
        document |= {"same_steps": found[0], "decision": found[1], "departs": found[2]}
    emit(document, as_json, _render)
    return 0 if found is None else 1


def _render(document: dict[str, Any]) -> None:
    where = f"in {document['other']}" if document["other"] else "made again"
    if document["same"]:
        conclude(True, f"{document['steps']:,} decisions are the same {where}")
        return
    decision, departs = (one or "nothing" for one in (document["decision"], document["departs"]))
    conclude(False, f"after {document['same_steps']:,} equal decisions {decision} is {departs} {where}")
