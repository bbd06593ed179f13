"""lab validate: how true the predictions of time are, by the records of cards."""

from typing import Annotated, Any

import typer

from experiments.cli.options import Json
from experiments.cli.output import emit, say, table, warn
from experiments.cli.waiting import working
from sim.errors import InputError

Kernels = Annotated[
    str, typer.Option("--kernel", metavar="NAME,...", help="Of these kernels alone; by default of all.")
]
Top = Annotated[int, typer.Option("--top", min=0, help="How many of the worst launches to show; JSON has all.")]

Fits = Annotated[
    str, typer.Option("--fits", metavar="MACHINE", help="Predict by what was fitted on this machine alone.")
]


def validate(kernel: Kernels = "", top: Top = 10, fits: Fits = "", as_json: Json = False) -> None:
    """Score predictions against every launch that a card timed: by family and clock, beside the plain roofline."""
    from experiments.launched import launched
    from experiments.validation import choices, families, scored, steps
    from lab import catalog
    from lab.cards import fits as lines
    from lab.record import archive

    names = {catalog.get(name).name for name in kernel.split(",") if name}
    with working("predicting what was timed"), lines.trial(*(lines.of_machine(fits) if fits else ())):
        past = archive()
        launches = [launch for launch in launched(past) if not names or launch.asked.kernel.name in names]
        found, picked = scored(launches), choices(launches)
        whole = [] if names else steps(past)
    for complaint in past.complaints:
        warn(complaint)
    if not found:
        raise InputError("the records hold no such launch that took longer than 10 us")
    document = {
        "families": [each._asdict() for each in families(found)],
        "choices": [{**one._asdict(), "problem": one.problem.as_dict()} for one in picked],
        "steps": [one.as_dict() for one in whole],
        "launches": [one.as_dict() for one in found],
    }
    emit(document, as_json, lambda _: _render(found, picked, whole, top))


def _render(found: Any, picked: Any, whole: Any, top: int) -> None:
    from experiments import validation as v

    table(v.FAMILY_HEADINGS, v.family_rows(v.families(found)))
    say("errors are shares of the measured time; before: of the prediction that stood when the time was taken")
    if picked:
        table(v.CHOICE_HEADINGS, v.choice_rows(picked))
        say("how much longer than the fastest timed launch of a problem the one predicted fastest takes")
    if whole:
        table(v.STEP_HEADINGS, v.step_rows(whole))
    if top:
        table(v.CELL_HEADINGS, v.cell_rows(found[:top]))
