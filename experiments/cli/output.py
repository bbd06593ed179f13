"""What verbs print: one JSON document, or tables made of the same document."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sim.errors import KernelError, LabError

WIDE = 140  # columns where standard output is no terminal


def prepare_streams() -> None:
    """Let the standard streams take any text: a closed one drops it, characters beyond an encoding are escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed: nothing else that is opened may take its place
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (it stays open as long as the process)
        elif mode == "w":
            stream.reconfigure(errors="backslashreplace")


def output_error() -> OSError | None:
    """Why standard output cannot be written, which takes nothing more then; None where it can."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def emit(document: Any, as_json: bool, render: Callable[[Any], None]) -> None:
    """Print a document as JSON on one line of ASCII, or let `render` print it for people."""
    if as_json:
        import msgspec

        try:
            text = msgspec.json.encode(document).decode()
        except UnicodeEncodeError:  # the name of a file that is not UTF-8
            text = json.dumps(msgspec.to_builtins(document))
        print(re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text))
    else:
        render(document)


def say(text: str = "") -> None:
    """Print one line of text for people."""
    print(text)


def complain(error: LabError) -> None:
    """Say on standard error what failed: on one line, but the lines of a compiler stay as they are."""
    warn(str(error) if isinstance(error, KernelError) else " ".join(str(error).split()))


def warn(text: str) -> None:
    """Say on standard error what a person should know beside the answer."""
    with suppress(OSError):  # nobody can be told
        print(f"lab: {text}", file=sys.stderr, flush=True)


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
