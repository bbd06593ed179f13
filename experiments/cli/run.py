"""lab run: one question of the article, answered on either chip."""

from typing import Annotated, Any

import typer

from experiments.cli.options import Json, Keep, Machine, On, Where
from experiments.cli.output import emit, number, say, table, warn, working

Name = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A name from lab list.", show_default=False)]
Options = Annotated[list[str] | None, typer.Argument(metavar="NAME=VALUE...", help="Options of the experiment.")]


def run(
    experiment: Name,
    words: Options = None,
    on: On = Where.SIM,
    machine: Machine = "h100",
    record: Keep = None,
    as_json: Json = False,
) -> int:
    """Run an experiment: its table in three columns and its verdict. Exit code 1 where its claim does not hold."""
    from experiments import runner

    with working(f"running {experiment}"):
        answer = runner.answer(experiment, words or [], on.value, machine, record)
    document = {
        "experiment": answer.experiment,
        "question": answer.question,
        "on": on.value,
        "passed": answer.passed,
        "verdict": answer.verdict.sentence,
        "rows": answer.rows,
        "records": answer.records,
        "complaints": answer.complaints,
    }
    for complaint in answer.complaints:
        warn(complaint)
    emit(document, as_json, _render)
    return 0 if answer.passed else 1


def _render(document: dict[str, Any]) -> None:
    say(document["question"])
    rows = document["rows"]
    table(
        ["", "", "theory", "simulated", "measured"],
        ([r.case, r.shown, number(r.theory), number(r.simulated), number(r.measured)] for r in rows),
        numbers_from=2,
    )
    for source in sorted({r.source for r in rows if r.source}):
        say(f"measured on {source}")
    if not any(r.source for r in rows):
        say("nothing of this has been measured yet")
    wrong = [r for r in document["records"] if r.check and not r.check.passed]
    for record in wrong:
        say(f"FAILED check: {record.kernel} on {record.problem}")
    say(document["verdict"])
