"""The loop's time, in microseconds: a virtual one that only moves when told, and the wall's."""

import time
from typing import Protocol


class Clock(Protocol):
    """What the loop asks for the time and waits by."""

    @property
    def now_us(self) -> float: ...

    def wait_until(self, us: float) -> None:
        """Return when it is at least that late."""

    def spend(self, us: float) -> None:
        """Let so much time pass that the host is modelled to have worked."""


class VirtualClock:
    """Time that depends on nothing but what it is told."""

    def __init__(self) -> None:
        self.now_us = 0.0

    def wait_until(self, us: float) -> None:
        self.now_us = max(self.now_us, us)

    def spend(self, us: float) -> None:
        self.now_us += us


class WallClock:
    """Time since the clock was made; the host's own work takes what it takes."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def now_us(self) -> float:
        return (time.perf_counter() - self._start) * 1e6

    def wait_until(self, us: float) -> None:
        if (left := us - self.now_us) > 0:
            time.sleep(left / 1e6)

    def spend(self, us: float) -> None:
        """Nothing: it has passed."""
