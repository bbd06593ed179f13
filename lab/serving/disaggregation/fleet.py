"""Several engines by one time: whoever is the earliest acts next, and what is to happen later lies in a heap.

Each engine has a virtual clock of its own. An engine that has nothing to do sleeps until it is given something.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Sized
from heapq import heappop, heappush
from itertools import count
from math import inf

from msgspec import structs

from lab.serving.disaggregation.front import Flight, Front
from lab.serving.disaggregation.handover import Receiver, Sender
from lab.serving.disaggregation.link import Link, Push
from lab.serving.engine import Engine
from lab.serving.request import Request, Sequence
from lab.serving.routing import PrefixRouter

Arrived = Callable[[float, Sequence], None]  # when, and which sequence goes on with its first token


class Fleet(ABC):
    """Engines that share what they are asked. Not for two threads at once."""

    def __init__(self, engines: Sized[Engine]) -> None:
        self.engines = list(engines)
        self._awake = [False] * len(engines)
        self._later: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()

    @property
    def next_us(self) -> float:
        """When something happens next; infinite where nothing is left to do."""
        return min([self._later[0][0] if self._later else inf, *(us for us, _ in self._due())])

    def at(self, us: float, what: Callable[[float], None]) -> None:
        """Let something happen at a time, before what engines do then."""
        heappush(self._later, (us, next(self._order), what))

    def act(self) -> bool:
        """Let the earliest thing happen; False where nothing is left to do."""
        us, engine = min(self._due(), default=(inf, -1))
        if self._later and self._later[0][0] <= us:
            us, _, what = heappop(self._later)
            what(us)
            return True
        if engine < 0:
            return False
        if not self.engines[engine].step():
            self._awake[engine] = False
        self.stepped(engine)
        return True

    def wake(self, engine: int, us: float) -> None:
        """An engine is given something to do; one that sleeps begins then."""
        if not self._awake[engine]:
            self._awake[engine] = True
            self.engines[engine].clock.wait_until(us)

    @abstractmethod
    def add(self, request: Request, us: float) -> None:
        """Take a request; raises InputError where it can never be served."""

    @abstractmethod
    def stepped(self, engine: int) -> None:
        """An engine has done a step, or found nothing to do."""

    @abstractmethod
    def abort(self, id: int) -> None:
        """Give a request up, in whatever state; nothing where it has ended."""

    @property
    @abstractmethod
    def sequences(self) -> dict[int, Sequence]:
        """Every request's sequence, once it has one."""

    def _due(self) -> list[tuple[float, int]]:
        return [(e.clock.now_us, i) for i, e in enumerate(self.engines) if self._awake[i]]


class Replicas(Fleet):
    """Engines of one kind, each whole: a request goes to the one that has most of its prefix, or least to do."""

    def __init__(self, engines: Sized[Engine]) -> None:
        super().__init__(engines)
        self._router = PrefixRouter(len(engines), page_tokens=engines[0].scheduler.policy.page_tokens)
        self._sequences: dict[int, Sequence] = {}
        self._open: list[dict[int, Sequence]] = [{} for _ in engines]

    @property
    def sequences(self) -> dict[int, Sequence]:
        return self._sequences

    def add(self, request: Request, us: float) -> None:
        engine = self._router.choose(request.prompt)
        sequence = self.engines[engine].add(request)
        self._sequences[request.id] = self._open[engine][request.id] = sequence
        self.wake(engine, us)

    def stepped(self, engine: int) -> None:
        for id in [id for id, sequence in self._open[engine].items() if sequence.reason]:
            del self._open[engine][id]
            self._router.done(engine)

    def abort(self, id: int) -> None:
        for number, engine in enumerate(self.engines):
            engine.abort(id)
            self.stepped(number)


class Disaggregated(Fleet):
    """Engines for prompts and engines for answers, with links between them that carry one push at a time each.

    `arrived` hears of each sequence that goes on with the first token that its push brought.
    """

    def __init__(
        self, senders: Sized[Engine], receivers: Sized[Engine], link: Link, arrived: Arrived | None = None
    ) -> None:
        super().__init__([*senders, *receivers])
        self._first = len(senders)  # of the receivers
        schedulers = [engine.scheduler for engine in self.engines]
        self.front = Front(
            [s for s in schedulers if isinstance(s, Sender)], [s for s in schedulers if isinstance(s, Receiver)]
        )
        self.link, self._arrived = link, arrived
        self.pushes: list[Push] = []

    @property
    def sequences(self) -> dict[int, Sequence]:
        return self.front.sequences

    def add(self, request: Request, us: float) -> None:
        self.front.add(request)
        self._offer(us)

    def stepped(self, engine: int) -> None:
        now = self.engines[engine].clock.now_us
        if engine < self._first:
            for flight in self.front.computed(engine):
                if flight.over:
                    self._arrive(flight, now)
                else:
                    self._push(flight, now)
        self._offer(now)

    def abort(self, id: int) -> None:
        self.front.abort(id)

    def _offer(self, us: float) -> None:
        for sender in self.front.offer():
            self.wake(sender, us)

    def _push(self, flight: Flight, now: float) -> None:
        assert flight.ready
        push = self.link.push(flight.sender, flight.receiver, len(flight.ready.pages), now, flight.ready.step_us)
        self.pushes.append(push)
        self.at(push.over_us, lambda us: self._arrive(flight, us))

    def _arrive(self, flight: Flight, us: float) -> None:
        if sequence := self.front.pushed(flight.offer.request.id):
            self.wake(self._first + flight.receiver, us)
            if self._arrived:
                self._arrived(us, sequence)
        self._offer(us)


def serve(fleet: Fleet, requests: Sized[Request], max_concurrency: int = 0) -> list[Sequence]:
    """Serve requests as they arrive, until all have ended; as `lab.serving.engine.serve` does by one engine.

    Where `max_concurrency` is above 0, no more than so many are sent at once: others arrive when one has ended.
    """
    most = max_concurrency or len(requests)
    for request in requests[:most]:
        fleet.at(request.arrival_us, _adding(fleet, request))
    under_way, sent = {request.id for request in requests[:most]}, most
    while fleet.act():
        if sent == len(requests):
            continue
        for id in [id for id in under_way if (s := fleet.sequences.get(id)) and s.reason]:
            under_way.remove(id)
            if sent < len(requests):
                at = max([requests[sent].arrival_us, *fleet.sequences[id].token_us[-1:]])
                request = structs.replace(requests[sent], arrival_us=at)
                fleet.at(at, _adding(fleet, request))
                under_way.add(request.id)
                sent += 1
    return [fleet.sequences[request.id] for request in requests]


def _adding(fleet: Fleet, request: Request) -> Callable[[float], None]:
    return lambda us: fleet.add(request, us)
