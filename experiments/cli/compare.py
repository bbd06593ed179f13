"""lab compare: two sets of records, time against time and each against its peers."""

from typing import Annotated, Any

import typer

from experiments.cli.options import Json
from experiments.cli.output import emit, number, say, table, warn

Before = Annotated[str, typer.Argument(metavar="BEFORE", help="A records file, or the run id of kept records.")]
After = Annotated[str, typer.Argument(metavar="AFTER", help="Likewise.")]
Threshold = Annotated[float, typer.Option(min=0, help="How much slower counts as a regression: 0.05 is 5 %.")]


def compare(before: Before, after: After, threshold: Threshold = 0.05, as_json: Json = False) -> int:
    """Compare timings, relative to the best peer of their run where both have one.

    Exit code 1 on a regression, and where a line of the records was skipped.
    """
    from experiments.comparison import compare as changes
    from experiments.comparison import load

    old, new = load(before), load(after)
    complaints = list(dict.fromkeys(old.complaints + new.complaints))
    for complaint in complaints:
        warn(complaint)
    rows = changes(old.records, new.records, threshold)
    regressed = any(row.regression for row in rows)
    document = {"threshold": threshold, "regressed": regressed, "rows": rows, "complaints": complaints}
    emit(document, as_json, _render)
    return 1 if regressed or complaints else 0


def _render(document: dict[str, Any]) -> None:
    rows = (
        [
            row.kernel,
            row.problem,
            row.clock,
            number(row.before_us),
            number(row.after_us),
            number(row.before_of_peer),
            number(row.after_of_peer),
            "LOST"
            if row.slowdown is None
            else f"{row.slowdown:.3f}{' REGRESSION' if row.regression else ' noise' if row.noise else ''}",
        ]
        for row in document["rows"]
    )
    headings = ["kernel", "problem", "clock", "before, us", "after, us", "before, x peer", "after, x peer", "slowdown"]
    table(headings, rows, numbers_from=3)
    say(f"{'slower' if document['regressed'] else 'nothing is slower'} by more than {document['threshold']:.0%}")
