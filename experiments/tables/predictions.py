"""How true predictions are: errors on every timed launch and on shapes held out of the fits, and the choices made."""

from collections.abc import Sequence

from experiments import validation as v
from experiments.launched import Launched, launched
from experiments.markdown import table as markdown
from lab.cards import fits
from lab.record import Archive
from sim.machine import H100, H200

WORST = 20  # launches shown


def table(past: Archive) -> str:
    """Six tables: families, kernels on held-out shapes, choices by two cards' fits, whole steps, the worst launches."""
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
            f"On the {H200.title}, by what was fitted on the {H100.title} alone and its own calibration:",
            markdown(v.CHOICE_HEADINGS, v.choice_rows(_by_another(launches))),
            "Whole steps of models, launches overlapping, by the clock of a chain:",
            markdown(v.STEP_HEADINGS, v.step_rows(v.steps(past))),
            f"The {min(WORST, len(found))} launches that are predicted worst:",
            markdown(v.CELL_HEADINGS, v.cell_rows(found[:WORST])),
        ]
    )


def _by_another(launches: Sequence[Launched]) -> list[v.Choice]:
    """What the coefficients of the H100 pick among the H200's launches."""
    with fits.trial(*fits.of_machine(H100.name)):
        return v.choices([launch for launch in launches if launch.asked.machine.name == H200.name])
