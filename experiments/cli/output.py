"""What verbs print: one JSON document, or tables made of the same document."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sim.errors import KernelError, LabError

WIDE = 140  # columns where standard output is no terminal


def emit(document: Any, as_json: bool, render: Callable[[Any], None]) -> None:
    """Print a document as JSON on one line, or let `render` print it for people."""
    if as_json:
        import msgspec

        print(msgspec.json.encode(document).decode())
    else:
        render(document)


def say(text: str = "") -> None:
    """Print one line of text for people."""
    print(text)


def complain(error: LabError) -> None:
    """Say on standard error what failed: on one line, but the lines of a compiler stay as they are."""
    text = str(error) if isinstance(error, KernelError) else " ".join(str(error).split())
    print(f"lab: {text}", file=sys.stderr)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> None:
    """Print a table; columns from `numbers_from` on hold numbers and are set to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else WIDE)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(headings):
        grid.add_column(heading, justify="right" if index >= numbers_from else "left")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    console.print(grid)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on standard error that something is under way, where that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def predicted(by_clock: Mapping[str, Any]) -> str:
    """What launches are predicted to take by each clock, and what binds in a graph of them."""
    times = ", ".join(f"{number(bills['us'])} us {clock}" for clock, bills in by_clock.items())
    bills = by_clock["graph"]
    parts = ", ".join(f"{what} {number(us)}" for what, us in bills["parts"].items() if us)
    return f"predicted {times}; {bills['binds']} binds ({parts})"


def number(value: float | None) -> str:
    """A number for people: integers whole, others with four significant digits, "-" for what was not counted."""
    if value is None:
        return "-"
    if isinstance(value, int) or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
