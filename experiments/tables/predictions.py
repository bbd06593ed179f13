"""How true predictions are: errors by family on every timed launch, by kernel on shapes held out of the fits."""

from experiments.markdown import table as markdown
from experiments.validation import CELL_HEADINGS, FAMILY_HEADINGS, cell_rows, families, family_rows, scored
from lab.cards import fits
from lab.record import Archive

WORST = 20  # launches shown


def table(past: Archive) -> str:
    """Three tables: families, kernels on held-out shapes, the worst launches."""
    found = scored(past)
    held = [
        [name, fit.machine or fit.arch, fit.clock, f"{e.launches:,}", f"{e.shapes}", f"{e.mean:.1%}", f"{e.worst:.1%}"]
        for fit in fits.load(fits.TABLE)
        for name, e in fit.errors.items()
    ]
    return "\n\n".join(
        [
            markdown(FAMILY_HEADINGS, family_rows(families(found))),
            "Kernels on shapes held out of their fits:",
            markdown(("kernel", "card", "clock", "launches", "shapes", "error: mean", "worst"), sorted(held)),
            f"The {min(WORST, len(found))} launches that are predicted worst:",
            markdown(CELL_HEADINGS, cell_rows(found[:WORST])),
        ]
    )
