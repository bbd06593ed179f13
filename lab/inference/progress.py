"""A progress bar on standard error where that is a terminal, else a line for what takes more than a second."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from sim.waits import mention

Advance = Callable[[int], None]  # takes how much is done so far


def silent(done: int) -> None:
    """Show nothing."""


@contextmanager
def progress(what: str, total: int, unit: Literal["bytes", "tensors"]) -> Iterator[Advance]:
    """Show how far `what` is; the context's value is called with the amount done, and does nothing off a terminal."""
    if not sys.stderr.isatty():
        wait = mention(what)
        try:
            yield silent
        finally:
            wait.cancel()
        return
    from rich.console import Console  # only a terminal needs it
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
