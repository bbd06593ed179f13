"""How true predictions are: errors on every timed launch and on shapes held out of the fits, and the choices made."""

from experiments import validation as v
from experiments.launched import launched
from experiments.markdown import table as markdown
from lab.cards import fits
from lab.record import Archive

WORST = 20  # launches shown


def table(past: Archive) -> str:
    """Five tables: families, kernels on held-out shapes, choices, whole steps, the worst launches."""
    launches = launched(past)
    found = v.scored(launches)
    held = [
        [name, fit.machine or fit.arch, fit.clock, f"{e.launches:,}", f"{e.shapes}", f"{e.mean:.1%}", f"{e.worst:.1%}"]
        for fit in fits.load(fits.TABLE)
        for name, e in fit.errors.items()
    ]
    return "\n\n".join(
        [
            markdown(v.FAMILY_HEADINGS, v.family_rows(v.families(found))),
            "Kernels on shapes held out of their fits:",
            markdown(("kernel", "card", "clock", "launches", "shapes", "error: mean", "worst"), sorted(held)),
            f"What predictions pick among the launches timed of a problem, {v.LEAST_TRIED} or more, takes so much "
            "longer than the fastest of them:",
            markdown(v.CHOICE_HEADINGS, v.choice_rows(v.choices(launches))),
            "Whole steps of models, launches overlapping, by the clock of a chain:",
            markdown(v.STEP_HEADINGS, v.step_rows(v.steps(past))),
            f"The {min(WORST, len(found))} launches that are predicted worst:",
            markdown(v.CELL_HEADINGS, v.cell_rows(found[:WORST])),
        ]
    )
