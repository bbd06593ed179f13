"""lab run: one question of the article, answered on either chip."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from experiments.cli.options import Json, Keep, Machine, On, Where
from experiments.cli.output import conclude, emit, number, say, spread, table, warn
from experiments.cli.waiting import working
from experiments.words import spell

Name = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A name from lab list, or all.", show_default=False)]
Options = Annotated[list[str] | None, typer.Argument(metavar="NAME=VALUE...", help="Options of the experiment.")]


class WithOptions(TyperCommand):
    """The verb whose help says what the experiment that is named beside --help asks, and what can be chosen in it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["words"] = list(args)
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from experiments.catalog import questions

        named = next((word for word in ctx.meta["words"] if word in questions()), "")
        with formatter.section(named or "Experiments"):
            if not named:
                formatter.write_dl(list(questions().items()))
                return
            from experiments.runner import described

            found = described(named)
            formatter.write_text(found["question"])
            formatter.write_paragraph()
            formatter.write_text(found["about"])
            formatter.write_paragraph()
            formatter.write_text(f"Options and their usual values: {spell(found['options']) or 'none'}")


def run(
    experiment: Name,
    words: Options = None,
    on: On = Where.SIM,
    machine: Machine = "h100",
    record: Keep = None,
    as_json: Json = False,
) -> int:
    """Run an experiment: its table in three columns and its verdict. Exit code 1 where its claim does not hold.

    lab run all runs every one with its usual options and says each verdict, which takes long. Where nothing was
    measured, predictions leave a claim about times undecided, and the exit code is 0. The options of an experiment:
    lab run EXPERIMENT --help.
    """
    from experiments import runner

    if experiment == "all":
        return _all(words or [], on.value, machine, record, as_json)
    with working(f"running {experiment}") as now:
        answer = runner.answer(experiment, words or [], on.value, machine, record, lambda found: now(_so_far(found)))
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
    emit(document, as_json, lambda d: _render(d, answer.kept))
    return 1 if answer.passed is False else 0


def _all(words: Sequence[str], on: str, machine: str, record: bool | None, as_json: bool) -> int:
    """Every experiment one after another; one that cannot run says why, and the others go on."""
    from experiments import runner
    from experiments.catalog import names
    from sim.errors import InputError, LabError

    if words:
        raise InputError(f"options are an experiment's own: name one in place of all to give {words[0]}")
    documents: list[dict[str, Any]] = []
    with working("running all") as now:
        for name in names():
            now(f"{name}, {len(documents) + 1} of {len(names())}")
            try:
                answer = runner.answer(name, [], on, machine, record)
                found = {"passed": answer.passed, "verdict": answer.verdict.sentence, "failure": None}
            except LabError as error:
                found = {"passed": False, "verdict": None, "failure": str(error)}
            documents.append({"experiment": name, **found})
    emit(documents, as_json, _render_all)
    return 1 if any(document["passed"] is False for document in documents) else 0


def _render_all(documents: list[dict[str, Any]]) -> None:
    words = {True: "holds", False: "does not hold", None: "undecided"}
    rows = [
        [d["experiment"], "failed" if d["failure"] else words[d["passed"]], d["failure"] or d["verdict"]]
        for d in documents
    ]
    table(["experiment", "", "verdict"], rows, numbers_from=3)


def _so_far(records: Sequence[Any]) -> str:
    last = records[-1]
    return f"{len(records)} results so far, the last {last.kernel or ''} {spell(last.problem or {})}"


def _render(document: dict[str, Any], kept: bool) -> None:
    from experiments.markdown import share

    say(document["question"])
    rows = document["rows"]
    headings = ["", "", "theory", "simulated", "measured"]
    cells = [[r.case, r.shown, *map(share if r.percent else number, (r.theory, r.simulated, r.measured))] for r in rows]
    if any(r.spread for r in rows):
        headings.append("quartiles, n")
        cells = [[*cell, spread(r.spread)] for cell, r in zip(cells, rows, strict=True)]
    table(headings, cells, numbers_from=2)
    for source in sorted({r.source for r in rows if r.source}):
        runs = sorted({r.run for r in rows if r.source == source and r.run})
        say(f"measured on {source}" + (f", run {', '.join(runs)}" if runs else ""))
    if not any(r.source for r in rows):
        say("nothing of this has been measured yet")
    wrong = [r for r in document["records"] if r.check and not r.check.passed]
    for record in wrong:
        say(f"FAILED check: {record.kernel} on {spell(record.problem or {})}")
    if kept and document["records"]:
        say(f"kept as run {document['records'][0].run}: lab compare BEFORE {document['records'][0].run}")
    conclude(document["passed"], document["verdict"])
