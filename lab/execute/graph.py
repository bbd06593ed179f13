"""Bound launches captured once, and replayed by one call."""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Protocol

from lab.execute.bound import Bound, Copy, SimulatedBound
from sim.counts import Counts
from sim.errors import InputError


class Graph(Protocol):
    """What was captured, in its order. It keeps the arrays it works on."""

    def replay(self, stream: int | None = None) -> Counts:
        """Run all of it; returns what was counted, which on a GPU is nothing."""

    def update(self) -> None:
        """Take over the arrays that its launches are bound to now."""


def capture(*bound: Bound, before: Sequence[Copy] = (), after: Sequence[Copy] = ()) -> Graph:
    """A graph of launches in this order, all on one chip, with copies before and after them; on a GPU a CUDA graph.

    Replays read what the bound arrays then hold; where a launch is bound anew, `update` lets the graph follow. Raises
    InputError where an array was never bound, and where launches of several chips are mixed.
    """
    if not bound:
        raise InputError("there is nothing to capture: give at least one bound plan")
    simulated = [one for one in bound if isinstance(one, SimulatedBound)]
    if len(simulated) == len(bound):
        return SimulatedGraph(simulated, before, after)
    from lab.execute.device import DeviceGraph  # loaded on first use: the simulated chip needs no GPU library

    return DeviceGraph(bound, before, after)


class SimulatedGraph:
    """The simulated chip has no launch to save: a replay runs what was bound."""

    def __init__(self, bound: list[SimulatedBound], before: Sequence[Copy] = (), after: Sequence[Copy] = ()) -> None:
        self._bound, self._before, self._after = bound, before, after
        self.update()

    def replay(self, stream: int | None = None) -> Counts:
        for copy in self._before:
            copy(stream)
        counts = reduce(add, (one.run(stream) for one in self._captured))
        for copy in self._after:
            copy(stream)
        return counts

    def update(self) -> None:
        self._captured = [one.copy() for one in self._bound]
        for one in self._captured:
            one.require_all()
