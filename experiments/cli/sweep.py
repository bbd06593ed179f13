"""lab sweep: a kernel's schedules in the order of their predicted times, without a GPU."""

from typing import Annotated, Any

import typer

from experiments.cli.options import Json, Machine, Words
from experiments.cli.output import emit, say, table
from experiments.cli.units import duration
from experiments.cli.waiting import working
from sim.errors import InputError

Subject = Annotated[
    str,
    typer.Argument(
        metavar="KERNEL|KIND",
        help="A name from lab list; or a kind of problem, for all kernels that a search on a GPU would try.",
        show_default=False,
    ),
]
Clock = Annotated[
    str,
    typer.Option(
        metavar="CLOCK",
        help="cold: L2 flushed before each; graph: inside a CUDA graph; chain: among dependent launches of a graph.",
    ),
]
Top = Annotated[int, typer.Option(min=1, help="How many to show; JSON has all.")]


def sweep(
    subject: Subject,
    words: Words = None,
    clock: Clock = "graph",
    machine: Machine = "h100",
    top: Top = 20,
    as_json: Json = False,
) -> None:
    """Rank the schedules that a search would try for a problem by their predicted times; lab bench --sweep times them.

    Of a kind of problem, those of the kernels that are not outgrown by two others, one upon the other.
    """
    from experiments.asked import kernel_named, questions
    from lab.cards import CLOCKS
    from lab.choice import contenders, legal_candidates, outgrown
    from lab.explain import explain
    from lab.kernel import schedule_fields
    from lab.problems import Problem
    from sim.machine import machine as machine_named

    if clock not in CLOCKS:
        raise InputError(f"unknown clock {clock!r}; clocks: {', '.join(CLOCKS)}")
    kernel, chip = kernel_named(subject), machine_named(machine)
    problem, *more = questions(subject, words or [])
    if more or not isinstance(problem, Problem):
        raise InputError("a sweep is of one problem that a kernel solves, neither of several nor of a whole model")
    if kernel is None:
        tried = list(contenders(problem, chip))
        gone = outgrown([one for one, _ in tried])  # their predictions flatter
        tried = [(one, schedule) for one, schedule in tried if one.name not in gone]
    else:
        kernel.best_guess(problem, chip)  # raises where there is none
        tried = [(kernel, schedule) for schedule in legal_candidates(kernel, problem, chip)]
    with working(f"predicting {len(tried)} schedules"):
        priced = [(one, schedule, one.bills(problem, schedule, chip, clock)) for one, schedule in tried]
    document = {
        "subject": subject,
        "problem": problem.as_dict(),
        "machine": chip.name,
        "clock": clock,
        "floor_us": explain(problem, chip).roofline.floor_us,
        "schedules": [
            {"kernel": one.name, "schedule": schedule_fields(schedule), **bills.as_dict()}
            for one, schedule, bills in sorted(priced, key=lambda found: found[2].us)
        ],
    }
    emit(document, as_json, lambda d: _render(d, chip.title, top))


def _render(document: dict[str, Any], chip: str, top: int) -> None:
    from experiments.cli.explained import title
    from experiments.words import spell

    ranked = document["schedules"]
    say(f"{title(document['problem'])} on the {chip}, clock {document['clock']}")
    rows = [
        [
            one["kernel"],
            spell(one["schedule"]),
            duration(one["us"]),
            f"{document['floor_us'] / one['us']:.0%}",
            f"{one['us'] / ranked[0]['us']:.3f}",
            one["binds"],
        ]
        for one in ranked[:top]
    ]
    table(["kernel", "schedule", "predicted", "of floor", "x best", "binds"], rows, numbers_from=2)
    say(f"{len(rows)} of {len(ranked)} schedules; floor {duration(document['floor_us'])}")
