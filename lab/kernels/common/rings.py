"""How deep a ring of stages may be."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import TypeVar

from lab.kernel import Schedule
from lab.problems import Linear
from sim.errors import ScheduleError
from sim.machine import Machine

Ring = TypeVar("Ring", bound=Schedule)


def deepest(make: Callable[[int], Ring], longest: int, problem: Linear, machine: Machine) -> Iterator[Ring]:
    """The schedule with the most stages, 2 to `longest`, that fits the problem; none where two stages do not.

    Where so many stages fit, fewer do.
    """

    def too_many(stages: int) -> bool:
        try:
            make(stages).fits(problem, machine)
        except ScheduleError:
            return True
        return False

    if not too_many(2):
        yield make(1 + bisect_left(range(2, longest + 1), True, lo=1, key=too_many))
