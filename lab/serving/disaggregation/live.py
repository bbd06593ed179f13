"""A fleet behind one front door: the engine that an HTTP service runs, by the wall's clock or as fast as it goes."""

from collections.abc import Sequence as Sized
from dataclasses import replace
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import NamedTuple

from lab.problems import Model
from lab.serving.clock import Clock, VirtualClock, WallClock
from lab.serving.disaggregation.setups import Setup, fleet_of
from lab.serving.engine import Engine, Observer, StepFacts
from lab.serving.policy import Policy
from lab.serving.request import Request, Sequence
from sim.machine import Machine

PATIENCE_US = 5e4  # for which a step may sleep: new requests wait as long


class Room(NamedTuple):
    """Pages of all engines."""

    available: int


class Together:
    """What gauges ask a scheduler, of all engines."""

    def __init__(self, engines: Sized[Engine]) -> None:
        self._schedulers = [engine.scheduler for engine in engines]
        pages = 1 + sum(s.policy.pages - 1 for s in self._schedulers)
        self.policy = replace(self._schedulers[0].policy, pages=pages)

    @property
    def running(self) -> list[Sequence]:
        return [sequence for s in self._schedulers for sequence in s.running]

    @property
    def waiting(self) -> list[Sequence]:
        return [sequence for s in self._schedulers for sequence in s.waiting]

    @property
    def pool(self) -> Room:
        return Room(sum(s.pool.available for s in self._schedulers))

    @property
    def hits(self) -> int:
        return sum(s.hits for s in self._schedulers)

    @property
    def preemptions(self) -> int:
        return sum(s.preemptions for s in self._schedulers)


class LiveFleet:
    """Several engines as the one that a service runs; what an engine has done is told when it is over by the clock.

    A first token that was pushed is told when its pages are there. Not for two threads at once.
    """

    def __init__(
        self, setup: Setup, model: Model, machine: Machine, policy: Policy, observe: Observer, real: bool
    ) -> None:
        self._observe, self._real = observe, real
        self.clock: Clock = WallClock() if real else VirtualClock()
        self._told: list[tuple[float, int, StepFacts, Sized[Sequence]]] = []
        self._order = count()
        self.fleet = fleet_of(setup, model, machine, policy, lambda _: self._hear, arrived=self._arrived)
        self.scheduler = Together(self.fleet.engines)

    def add(self, request: Request) -> None:
        """Take a request; raises InputError where it can never be served."""
        self.fleet.add(request, self.clock.now_us)

    def abort(self, id: int) -> None:
        """Give a request up, in whatever state; nothing where it has ended."""
        self.fleet.abort(id)

    def step(self) -> bool:
        """Let the next thing happen, or wait for it a while; False where there is none."""
        following = min(self.fleet.next_us, self._told[0][0] if self._told else inf)
        if following == inf:
            return False
        self.clock.wait_until(min(following, self.clock.now_us + PATIENCE_US) if self._real else following)
        while self._told and self._told[0][0] <= self.clock.now_us:
            _, _, facts, emitted = heappop(self._told)
            self._observe(facts, emitted)
        if self.fleet.next_us <= self.clock.now_us:
            self.fleet.act()
        return True

    def _hear(self, facts: StepFacts, emitted: Sized[Sequence]) -> None:
        own = [s for s in emitted if self.fleet.sequences.get(s.request.id) is s]  # a sender's are nobody's answer
        heappush(self._told, (facts.ended_us, next(self._order), facts, own))

    def _arrived(self, us: float, sequence: Sequence) -> None:
        heappush(self._told, (us, next(self._order), StepFacts(us, 0, 0, 0, 0, 0, 0, 0, 0), [sequence]))
