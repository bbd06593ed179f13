"""lab compare: two sets of records, time against time and each against its peers."""

from typing import Annotated, Any

import typer

from experiments.cli.options import Json
from experiments.cli.output import conclude, emit, number, say, spread, table, warn
from experiments.cli.waiting import working
from sim.errors import InputError

NEWEST = 20  # kept runs that are shown
WHAT = "A records file, or the run id or the commit of kept records."
Before = Annotated[str | None, typer.Argument(metavar="BEFORE", help=f"{WHAT} Without it the kept runs are listed.")]
After = Annotated[str | None, typer.Argument(metavar="AFTER", help="Likewise.")]
Threshold = Annotated[
    float, typer.Option(min=0, help="How much slower counts as a regression, beyond what samples leave uncertain.")
]


def compare(before: Before = None, after: After = None, threshold: Threshold = 0.05, as_json: Json = False) -> int:
    """Compare timings, relative to the best peer of their run where both have one; or list the runs there are.

    Exit code 1 on a regression, and where a line of the records was skipped.
    """
    if before is not None and after is None:
        raise InputError("two sets of records are compared; lab compare lists what there is")
    with working("reading the records"):
        from experiments.comparison import compare as changes
        from experiments.comparison import load, runs
        from lab.record import archive

        if before is None or after is None:
            past = archive()
            emit(runs(past), as_json, _render_runs)
            return _complained(past.complaints)
        old, new = load(before), load(after)
    complaints = list(dict.fromkeys(old.complaints + new.complaints))
    rows = changes(old.records, new.records, threshold)
    regressed = any(row.regression for row in rows)
    document = {"threshold": threshold, "regressed": regressed, "rows": rows, "complaints": complaints}
    code = _complained(complaints)
    emit(document, as_json, _render)
    return 1 if regressed else code


def _complained(complaints: Any) -> int:
    """Say what was skipped; the exit code that this makes."""
    for complaint in complaints:
        warn(complaint)
    return 1 if complaints else 0


def _render_runs(kept: Any) -> None:
    headings = ["run", "time", "experiment", "commit", "card", "times"]
    rows = ([r.run, r.time, r.experiment, r.commit, r.card, str(r.timed)] for r in kept[:NEWEST])
    table(headings, rows, numbers_from=5)
    if len(kept) > NEWEST:
        say(f"and {len(kept) - NEWEST:,} older runs, which --json lists")
    say("lab compare BEFORE AFTER takes ids and commits of these, and files")


def _render(document: dict[str, Any]) -> None:
    headings = ["kernel", "problem", "clock", "before, us", "quartiles, n", "after, us", "quartiles, n"]
    headings += ["before, x peer", "after, x peer", "slowdown"]
    rows = (
        [
            row.kernel,
            row.problem,
            row.clock,
            number(row.before_us),
            spread(row.before_spread),
            number(row.after_us),
            spread(row.after_spread),
            number(row.before_of_peer),
            number(row.after_of_peer),
            "LOST"
            if row.slowdown is None
            else f"{row.slowdown:.3f}{' REGRESSION' if row.regression else ' noise' if row.noise else ''}",
        ]
        for row in document["rows"]
    )
    table(headings, rows, numbers_from=3)
    share = f"more than {document['threshold']:.0%}, beyond the noise of their samples"
    conclude(not document["regressed"], f"{'slower' if document['regressed'] else 'nothing is slower'} by {share}")
