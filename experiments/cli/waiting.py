"""What a wait of more than a second waits for, on standard error: a moving line on a terminal, else plain lines."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer

from experiments.cli.output import warn

PATIENCE_S = 1.0  # what is over sooner is not mentioned where standard error is no terminal

Now = Callable[[str], None]  # takes what is done from now on


@contextmanager
def working(what: str) -> Iterator[Now]:
    """Say what is under way as long as it is; the context's value is called with each part of it that begins."""
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(what) as status:
            yield lambda part: status.update(f"{what}: {part}")
        return
    timers: list[Timer] = []

    def begin(what: str) -> None:
        end()
        timers.append(Timer(PATIENCE_S, warn, (f"{what} ...",)))
        timers[0].daemon = True
        timers[0].start()

    def end() -> None:
        if timers:
            timers.pop().cancel()

    begin(what)
    try:
        yield lambda part: begin(f"{what}: {part}")
    finally:
        end()
