"""How long pushes take between GPUs: each sends one at a time and receives one at a time."""

from collections import defaultdict
from functools import cache
from typing import NamedTuple

from lab import catalog
from lab.inference.step_input import PAGE
from lab.problems import Model
from lab.problems.transfer import Transfer
from sim.machine import Machine

KERNEL = "push_rows"


@cache
def push_us(model: Model, machine: Machine, pages: int, layers: int = 0) -> float:
    """Microseconds that pages of a sequence are predicted to be under way, in all layers or in so many.

    Raises InputError where the machine has no links.
    """
    kernel, problem = catalog.get(KERNEL), Transfer.of(model, pages * PAGE, PAGE, layers)
    return kernel.predicted_us(problem, kernel.best_guess(problem, machine), machine, "graph")


class Push(NamedTuple):
    """Pages on their way: how long the link needs for them, when the flag is there, how long that is after the step."""

    pages: int
    us: float
    over_us: float
    exposed_us: float


class Link:
    """The links of one host, by predicted times.

    `layered` pushes a layer's pages behind its own computation, so that those of the last one alone come after it.
    """

    def __init__(self, model: Model, machine: Machine, layered: bool = True) -> None:
        self._model, self._machine, self._layered = model, machine, layered
        self._free: dict[tuple[str, int], float] = defaultdict(float)  # when each side has done what it was given
        self._tails: dict[tuple[str, int], float] = defaultdict(float)  # likewise, of last layers alone

    def push(self, sender: int, receiver: int, pages: int, now_us: float, step_us: float) -> Push:
        """Push pages that a step of `step_us` has computed until now."""
        whole, sides = push_us(self._model, self._machine, pages), (("sends", sender), ("receives", receiver))
        last = push_us(self._model, self._machine, pages, layers=1) if self._layered else whole
        ready = now_us - step_us if self._layered else now_us
        free = max([ready, *(self._free[side] for side in sides)]) + whole
        tail = max([now_us, *(self._tails[side] for side in sides)]) + last
        for side in sides:
            self._free[side], self._tails[side] = free, tail
        over = max(free, tail)
        return Push(pages, whole, over, over - now_us)
