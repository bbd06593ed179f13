"""What a wait of more than a second waits for, on standard error: a moving line on a terminal, else plain lines."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sim.waits import mention

Now = Callable[[str], None]  # takes what is done from now on


@contextmanager
def working(what: str) -> Iterator[Now]:
    """Say what is under way as long as it is; the context's value is called with each part of it that begins."""
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(what, spinner="line") as status:
            yield lambda part: status.update(f"{what}: {part}")
        return
    timers = [mention(what)]

    def now(part: str) -> None:
        timers.pop().cancel()
        timers.append(mention(f"{what}: {part}"))

    try:
        yield now
    finally:
        timers.pop().cancel()
