"""lab fit: the coefficients of the kernels' models of time, from the records of cards."""

from typing import Annotated, Any

import typer

from experiments.cli.options import Json
from experiments.cli.output import emit, say, table
from experiments.cli.waiting import working
from sim.errors import EnvironmentFailure, InputError

Kernels = Annotated[
    str, typer.Option("--kernel", metavar="NAME,...", help="Fit the models of these alone; by default of all kernels.")
]
Card = Annotated[str, typer.Option("--machine", metavar="NAME", help="Fit the lines of this card alone.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Write nothing, only say what the fits would be.")]


def fit(kernel: Kernels = "", machine: Card = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Fit the models of time to the times in the records, and say how far they are off on shapes held out of the fit.

    The coefficients go to lab/cards/fits.jsonl of this checkout, one line each for a model, a card and a clock.
    """
    from lab.cards import fits
    from lab.record import archive, in_checkout

    if not (dry_run or in_checkout()):
        raise InputError("lab fit writes into a checkout of the lab; without it only --dry-run")
    try:
        from experiments.fitting import fitted
    except ModuleNotFoundError as error:
        raise EnvironmentFailure(f"lab fit needs {error.name}: pip install 'kernel-lab[fit]'") from error
    from experiments.launched import launched
    from lab import catalog
    from sim.machine import machine as machine_named

    if machine:
        machine_named(machine)
    names = {catalog.get(name).name for name in kernel.split(",") if name}
    with working("fitting") as now:
        lines = fitted(launched(archive()), now, names, machine)
    if not lines:
        raise InputError("the records hold too few launches of these kernels for a fit")
    if not dry_run:
        fits.put(lines, machine)
    emit({"written": not dry_run, "fits": lines}, as_json, _render)


def _render(document: dict[str, Any]) -> None:
    rows = [
        [name, line.machine, line.clock, f"{e.launches:,}", f"{e.shapes}", f"{e.mean:.1%}", f"{e.worst:.1%}"]
        for line in document["fits"]
        for name, e in line.errors.items()
    ]
    table(["kernel", "card", "clock", "launches", "shapes", "mean error", "worst"], rows)
    say("errors are on shapes held out of the fit" + ("" if document["written"] else "; nothing was written"))
