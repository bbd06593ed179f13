"""lab tune: race what predictions leave undecided, and keep the winners for lab.linear and lab.attention."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from experiments.cli.options import Json, Words
from experiments.cli.output import emit, number, say, table
from experiments.cli.waiting import working
from experiments.words import spell
from sim.errors import EnvironmentFailure, InputError

Kind = Annotated[
    str,
    typer.Argument(
        metavar="KIND",
        help="A kind of problem (linear, attention ...) or model: then the name of a known one or a folder with a "
        "config.json.",
        show_default=False,
    ),
]
Most = Annotated[int, typer.Option(min=2, max=256, metavar="N", help="Candidates of a problem, the best predictions.")]
Rounds = Annotated[int, typer.Option(min=1, max=10_000, help="Samples of each finalist.")]
Again = Annotated[bool, typer.Option("--again", help="Race what your table has, too.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Race nothing: say what is undecided. Needs no GPU.")]
Compile = Annotated[bool, typer.Option("--compile", help="Race nothing: compile what would race. Needs no GPU.")]
Machine = Annotated[
    str, typer.Option(metavar="NAME", help="The card that predictions are of, where it is not this machine's.")
]
Ray = Annotated[
    str, typer.Option("--ray", metavar="ADDRESS", help="Race on a Ray cluster's GPUs, a problem each (extra ray).")
]
Keep = Annotated[bool, typer.Option("--record/--no-record", help="Keep the records.")]


def tune(
    kind: Kind,
    words: Words = None,
    candidates: Most = 24,
    rounds: Rounds = 15,
    again: Again = False,
    dry_run: DryRun = False,
    compiled: Compile = False,
    machine: Machine = "",
    ray: Ray = "",
    record: Keep = True,
    as_json: Json = False,
) -> int:
    """Race what predictions leave undecided, problem by problem; winners go to your own table, before the lab's.

    lab tune linear m=1..64 n=4096 k=4096 weights=bf16,fp8; lab tune model llama-3-8b batch=1,8. What your table has is
    left out, so that an interrupted run is taken up where it ended. Exit code 1 where a race found no winner.
    """
    from experiments.asked import questions
    from experiments.running import backends, tuning
    from lab import tuned
    from sim.machine import machine as machine_named

    idle = dry_run or compiled
    if machine and not (idle or ray):
        raise InputError("--machine is for --dry-run, --compile and --ray: a race here is on this machine's GPU")
    if ray and not machine:
        raise InputError("--ray needs --machine NAME: the cluster's cards, as lab explain --machine names them")
    target = machine_named(machine) if machine else backends.real_machine()
    run = tuning.one_by_one if not ray else _on_ray(ray)
    with working("predicting"):
        problems = tuning.classes(questions(kind, words or []), target)
        if not problems:
            raise InputError(f"no kernel takes any of this on the {target.title}")
        known = [p for p in problems if not again and tuned.is_users(p, target)]
        searches = [tuning.search_of(p, target, candidates, rounds) for p in problems if p not in known]
    open_ = [search for search in searches if len(search.incumbents) > 1]
    rows = [_row(search, "decided by prediction") for search in searches if search not in open_]
    with tuning.compiling([] if dry_run or ray else open_, target) as compiling_ends, working("tuning") as now:
        if compiled:
            compiling_ends()
        for count, (search, found) in enumerate(() if idle else run(open_), 1):
            rows.append(_settled(search, found, target.name, record))
            now(f"{count} of {len(open_)} problems raced")
    if idle:
        rows += [_row(search, "compiled" if compiled else "undecided") for search in open_]
    document = {"machine": target.name, "table": str(tuned.user_table()), "known": len(known), "problems": rows}
    emit(document, as_json, _render)
    return 1 if any(row["failure"] for row in rows) else 0


def _on_ray(address: str) -> Any:
    from functools import partial

    try:
        from experiments.running.ray_tuning import on_ray
    except ModuleNotFoundError as error:
        raise EnvironmentFailure(f"lab tune --ray needs {error.name}: pip install 'kernel-lab[ray]'") from error
    return partial(on_ray, address=address)


def _row(search: Any, outcome: str, failure: str = "", **entry: Any) -> dict[str, Any]:
    """A problem's line: how many candidates its predictions left, the first of them, and what came of it."""
    kernel, schedule = search.incumbents[0]
    picked = {"kernel": kernel, "schedule": schedule}
    return {
        "problem": search.problem,
        "candidates": len(search.incumbents),
        "predicted": picked,
        "outcome": outcome,
        "failure": failure,
        "kernel": None,
        "schedule": None,
        "us": None,
        "picked_us": None,
        **entry,
    }


def _settled(search: Any, found: Any, machine_name: str, keep: bool) -> dict[str, Any]:
    """The line of a race; its records are kept and its winner enters the user's table."""
    from experiments.running.tuning import won
    from lab import tuned
    from lab.choice import schedule_words
    from lab.record import append, folder
    from sim.errors import LabError

    if isinstance(found, LabError):
        return _row(search, "failed", str(found))
    for one in found if keep else ():
        append(one, folder() / "tune.jsonl")
    entry = won(search, found)
    if entry is None:
        failures = [str(r.metrics["failure"]) for r in found if "failure" in r.metrics]
        return _row(search, "failed", failures[0] if failures else "nothing had a time")
    if entry.machine != machine_name:
        return _row(search, "failed", f"it ran on a {entry.machine}, not on a {machine_name}")
    tuned.put([entry], tuned.user_table())
    times = {(r.kernel, schedule_words(r.schedule or {})): r.us for r in found if r.schedule}
    picked_us = times.get(search.incumbents[0])
    words = schedule_words(entry.schedule)
    return _row(search, "raced", kernel=entry.kernel, schedule=words, us=entry.us, picked_us=picked_us)


def _render(document: dict[str, Any]) -> None:
    rows: list[Sequence[str]] = []
    for row in document["problems"]:
        chosen = row if row["kernel"] else row["predicted"]
        outcome = f"{row['outcome']}: {row['failure']}" if row["failure"] else row["outcome"]
        cells = [chosen["kernel"], chosen["schedule"], number(row["us"]), number(row["picked_us"])]
        rows.append([spell(row["problem"]), str(row["candidates"]), *cells, outcome])
    if rows:
        table(["problem", "candidates", "kernel", "schedule", "us", "the prediction's, us", "outcome"], rows, 1)
    if document["known"]:
        say(f"{document['known']} problems are in your table already; --again races them too")
    if any(row["us"] for row in document["problems"]):
        say(f"winners are in {document['table']}")
