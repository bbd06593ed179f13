"""Weights on their way to a chip: a few threads fill parts, in memory that a GPU copies from meanwhile."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lab.inference.chip import Chip

PART = 2**20  # elements of 16 bits that are on their way together
THREADS = 3  # that fill parts; with more of them Python's own lock costs more than they gain
SLOTS = 2 * THREADS
_WORD = np.dtype(np.uint16)

Fill = Callable[[NDArray[np.uint16]], None]


class Staging:
    """The way of 16-bit words to a chip, in the order in which they are sent; all are there when its context ends."""

    def __init__(self, chip: Chip) -> None:
        self._chip = chip
        self._threads = ThreadPoolExecutor(THREADS)
        self._slots: deque[tuple[NDArray, Any]] = deque()
        if chip.device is not None:
            self._slots.extend((chip.host((PART,), _WORD), chip.mark()) for _ in range(SLOTS))
        self._under_way: deque[tuple[Future[None], Any, NDArray, Any]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._under_way and error is None:
                self._pass_on()
        finally:
            self._threads.shutdown(cancel_futures=True)

    def send(self, to: Any, fill: Fill) -> None:
        """Have an array of at most PART words on the chip hold what `fill` writes, in another thread maybe.

        What that raises is raised by a later call, or at the end.
        """
        if not self._slots:  # the simulated chip's memory is the host's
            fill(to)
            return
        if len(self._under_way) == SLOTS:
            self._pass_on()
        memory, mark = self._slots[0]
        self._slots.rotate(-1)
        mark.wait()  # until the copy from it that was before has ended
        part = memory[: to.size].reshape(to.shape)
        self._under_way.append((self._threads.submit(fill, part), to, part, mark))

    def _pass_on(self) -> None:
        """Enqueue the copy of what was sent first."""
        filled, to, part, mark = self._under_way.popleft()
        filled.result()
        self._chip.copy(to, part)
        mark.set()
