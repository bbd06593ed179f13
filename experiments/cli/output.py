"""What verbs print: one JSON document, or tables made of the same document."""

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sim.errors import KernelError, LabError

SENTENCE = 30  # columns that a sentence in a table has at least, else it is a tower of words


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
    """Print one sentence for people; a terminal's width breaks it between words."""
    print(_wrapped(text) if sys.stdout.isatty() else text)


def conclude(passed: bool | None, sentence: str) -> None:
    """Print the answer of a verb, with PASS or FAILED before it where it was a matter of right and wrong."""
    if passed is None:
        say(sentence)
        return
    word, style = ("PASS", "bold green") if passed else ("FAILED", "bold red")
    if not sys.stdout.isatty():
        print(f"{word}: {sentence}")
        return
    from rich.text import Text

    text = Text(_wrapped(f"{word}: {sentence}"))
    text.stylize(style, 0, len(word))
    _console().print(text, soft_wrap=True)


def complain(error: LabError) -> None:
    """Say on standard error what failed: on one line, but the lines of a compiler stay as they are."""
    warn(str(error) if isinstance(error, KernelError) else " ".join(str(error).split()))


def warn(text: str) -> None:
    """Say on standard error what a person should know beside the answer."""
    with suppress(OSError):  # nobody can be told
        print(f"lab: {text}", file=sys.stderr, flush=True)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> None:
    """Print a table; columns from `numbers_from` on hold numbers and are set to the right.

    Where output is no terminal, a row is one line, however long. A terminal's width is kept by breaking lines between
    words, and where not even the words fit side by side, by one block of lines a row: no word is ever cut.
    """
    cells = [list(map(str, row)) for row in rows]
    if not sys.stdout.isatty():
        _print_lines(headings, cells, numbers_from)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = _console()
    columns = list(zip(headings, *cells, strict=True))
    natural = [max(map(len, column)) for column in columns]
    words = [max(len(word) for cell in column for word in cell.split(" ")) for column in columns]
    least = [max(word, SENTENCE) if width > 2 * SENTENCE else word for word, width in zip(words, natural, strict=True)]
    widths = _fitted(natural, least, console.width - 3 * len(columns) - 1)  # between columns: two spaces and a frame's
    if widths is None:
        _print_blocks(headings, cells)
        return
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, (heading, width) in enumerate(zip(headings, widths, strict=True)):
        grid.add_column(Text(heading), justify="right" if index >= numbers_from else "left", width=width)
    for row in cells:
        grid.add_row(*map(Text, row))
    console.print(grid)


def _fitted(natural: Sequence[int], least: Sequence[int], room: int) -> list[int] | None:
    """Widths of columns within the room, the widest made narrower first; None where the least ones need more."""
    widths = list(natural)
    while sum(widths) > room:
        wide = [index for index, width in enumerate(widths) if width > least[index]]
        if not wide:
            return None
        widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _print_lines(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int) -> None:
    """One line a row, two spaces between columns."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        padded = [
            cell.rjust(width) if index >= numbers_from else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        if line := "  ".join(padded).rstrip():
            print(line)


def _print_blocks(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """One block of lines a row: its first cell, then each other that says something, under its heading."""
    for first, *others in rows:
        print(_wrapped(first))
        for heading, cell in zip(headings[1:], others, strict=True):
            if cell not in ("", "-"):
                print(_wrapped(f"{heading}: {cell}" if heading else cell, "  "))
        print()


def _wrapped(text: str, indent: str = "") -> str:
    """Text in lines of the terminal's width, broken between words only."""
    lines = (
        textwrap.wrap(
            line,
            _columns(),
            initial_indent=indent,
            subsequent_indent=2 * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.split("\n")
    )
    return "\n".join("\n".join(line) for line in lines)


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, width=_columns(), height=25)  # of both, else rich measures itself


def _columns() -> int:
    """Columns of the terminal behind standard output."""
    return max(shutil.get_terminal_size().columns, 20)


def predicted(by_clock: Mapping[str, Any]) -> str:
    """What launches are predicted to take by each clock, and what binds in a graph of them."""
    times = ", ".join(f"{number(bills['us'])} us {clock}" for clock, bills in by_clock.items())
    bills = by_clock["graph"]
    parts = ", ".join(f"{what} {number(us)}" for what, us in bills["parts"].items() if us)
    return f"predicted {times}; {bills['binds']} binds ({parts})"


def spread(found: Any) -> str:
    """The quartiles of samples and how many there are; "-" for none."""
    return f"{number(found.low_us)} to {number(found.high_us)}, {found.samples}" if found else "-"


def number(value: float | None) -> str:
    """A number for people: integers whole, others with four significant digits, "-" for what was not counted."""
    if value is None:
        return "-"
    if isinstance(value, int) or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
