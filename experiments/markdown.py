"""Tables in Markdown, and figures as their cells show them."""

from collections.abc import Iterable, Sequence

from experiments.rows import Row

FEW, FULL = 3, 0.3  # quantities from which on a table has a line a case; share of its cells that have figures


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a bar within a cell is escaped."""
    lines = [" | ".join(("", *headings, "")).strip(), "| " + " | ".join("---" for _ in headings) + " |"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def three_columns(rows: Sequence[Row], sentence: str) -> str:
    """Rows as a table of theory, simulation and measurement, a sentence, and where the measured figures come from.

    Where the same quantities are told of many cases, none by theory, it has a line for each case instead.
    """
    sources = sorted({r.source for r in rows if r.source})
    return "\n\n".join(
        [
            _lines_of_cases(rows) or _lines_of_quantities(rows),
            sentence,
            *([measured_on(sources)] if sources else []),
        ]
    )


def _lines_of_quantities(rows: Sequence[Row]) -> str:
    cells = ([r.case, r.shown, *(_cell(r, value) for value in (r.theory, r.simulated, r.measured))] for r in rows)
    return table(["", "", "theory", "simulated", "measured"], cells)


def _lines_of_cases(rows: Sequence[Row]) -> str | None:
    """Simulated figures by case and quantity, measured ones behind them; None where that would be mostly empty."""
    cases, quantities = (list(dict.fromkeys(names)) for names in ((r.case for r in rows), (r.shown for r in rows)))
    room = len(cases) * len(quantities)
    if any(r.theory is not None for r in rows) or len(quantities) < FEW or len(cases) < 2 or len(rows) < FULL * room:
        return None
    found = {
        (r.case, r.shown): " / ".join(_cell(r, v) for v in (r.simulated, r.measured) if v is not None) for r in rows
    }
    lines = ([case, *(found.get((case, quantity)) or "-" for quantity in quantities)] for case in cases)
    both = any(r.simulated is not None and r.measured is not None for r in rows)
    return table(["simulated / measured" if both else "", *quantities], lines)


def _cell(row: Row, value: float | None) -> str:
    return share(value) if row.percent else figure(value)


def measured_on(sources: Iterable[str]) -> str:
    """The cards and commits of a table's measured figures, in one sentence."""
    return f"Measured on {'; '.join(sorted(set(sources)))}."


def figure(value: float | None) -> str:
    """A number with four significant digits, whole from a thousand on; "-" for none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def share(value: float | None) -> str:
    """A share of 1 in percent; "-" for none."""
    return "-" if value is None else f"{value:.1%}"
