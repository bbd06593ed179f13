"""Tables in Markdown, and figures as their cells show them."""

from collections.abc import Iterable, Sequence

from experiments.rows import Row


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a bar within a cell is escaped."""
    lines = [" | ".join(("", *headings, "")).strip(), "| " + " | ".join("---" for _ in headings) + " |"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def three_columns(rows: Sequence[Row], sentence: str) -> str:
    """Rows as a table of theory, simulation and measurement, a sentence, and where the measured figures come from."""
    cells = ([r.case, r.shown, *map(share if r.percent else figure, (r.theory, r.simulated, r.measured))] for r in rows)
    sources = sorted({r.source for r in rows if r.source})
    return "\n\n".join(
        [
            table(["", "", "theory", "simulated", "measured"], cells),
            sentence,
            *([measured_on(sources)] if sources else []),
        ]
    )


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
