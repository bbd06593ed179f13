"""Waits of more than a second are said on standard error, as lines: for where that is no terminal."""

import sys
from contextlib import suppress
from threading import Timer

PATIENCE_S = 1.0


def mention(what: str) -> Timer:
    """Say that something is under way, unless the timer that this returns is cancelled within a second."""
    timer = Timer(PATIENCE_S, _say, (what,))
    timer.daemon = True
    timer.start()
    return timer


def _say(what: str) -> None:
    with suppress(OSError, ValueError):  # nobody can be told
        print(f"lab: {what} ...", file=sys.stderr, flush=True)
