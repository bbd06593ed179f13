"""An engine of prompts by itself, in a thread or a process: it hears of offers, computes, pushes, and says so."""

import signal
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from lab.inference.chip import Chip, chip_of
from lab.inference.lending import Name, borrow
from lab.inference.step_weights import StepWeights
from lab.serving.clock import WallClock
from lab.serving.disaggregation.handover import Ready, Sender, Take, ended
from lab.serving.disaggregation.layered import LayeredExecutor
from lab.serving.disaggregation.pushing import Pool, Pusher, forward_of
from lab.serving.engine import Engine
from lab.serving.models import engine_of
from lab.serving.on_chip import ChipExecutor
from lab.serving.policy import Policy
from lab.serving.request import Sequence

IDLE_S = 0.05  # how long an engine that has nothing to do waits for news
SOON_S = 1e-4  # likewise, where a push is under way


class Up(NamedTuple):
    """It is ready for offers."""


class Failed(NamedTuple):
    """It never will be, or is no more: why."""

    why: str


class GiveUp(NamedTuple):
    """Nobody wants that request any more."""

    id: int


class Computed(NamedTuple):
    """A prompt's first token; its pages are under way where it goes on."""

    ready: Ready
    pushed: bool


class GivenUp(NamedTuple):
    """Of that request nothing was written, and nothing will be."""

    id: int


class Site(NamedTuple):
    """All that an engine of prompts is made of, elsewhere: its chip, its weights, where it pushes to.

    `targets` are the memories of receivers' pools: by name for a process, as they are for a thread. `layered` pushes
    each layer behind its own computation, `prepared` captures all steps before the first.
    """

    machine: str
    device: int | None
    weights: Callable[[Chip], StepWeights]
    policy: Policy
    targets: tuple[Any, ...]
    layered: bool = True
    prepared: bool = True


class Under(NamedTuple):
    """A push that is under way for a request, or what was pushed of one that is given up."""

    id: int
    mark: Any
    given_up: bool

    @property
    def over(self) -> bool:
        return self.mark is None or bool(self.mark.passed)


class Prefill:
    """Runs an engine whose scheduler is a `Sender`, until the other end of its connection is gone.

    Pages are pushed layer by layer where its executor is one that does that, else when a prompt is computed.
    """

    def __init__(self, engine: Engine, pusher: Pusher, connection: Connection) -> None:
        assert isinstance(engine.scheduler, Sender)
        self._engine, self._sender = engine, engine.scheduler
        self._pusher, self._connection = pusher, connection
        self._taken: dict[int, Take] = {}
        self._pushes: deque[Under] = deque()
        self._busy = False
        self._layered = engine.executor if isinstance(engine.executor, LayeredExecutor) else None
        if self._layered:
            self._layered.push_for(pusher, self._taken)

    def run(self) -> None:
        """Serve; returns when nobody is left to serve."""
        self._connection.send(Up())
        try:
            while True:
                self.turn(0.0 if self._busy else SOON_S if self._pushes else IDLE_S)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return

    def turn(self, patience_s: float = 0.0) -> None:
        """Hear what was said, which may be waited for, then do a step, and say what has come of those before."""
        while self._connection.poll(patience_s):
            self._hear(self._connection.recv())
            patience_s = 0.0
        self._busy = self._engine.step()
        while self._sender.ready:
            self._computed(self._sender.ready.popleft())
        while self._pushes and self._pushes[0].over:
            self._over(self._pushes.popleft())

    def _hear(self, message: Any) -> None:
        if isinstance(message, Take):
            self._taken[message.offer.request.id] = message
            self._sender.add(message.offer.request)
        elif self._sender.abort(message.id):
            del self._taken[message.id]
            _, mark = self._pushed(message.id)
            self._pushes.append(Under(message.id, mark, given_up=True))

    def _computed(self, ready: Ready) -> None:
        """Push a prompt that goes on, and tell its first token; the flag will say when its pages are there."""
        offer, receiver = self._taken.pop(ready.id)
        pushed, mark = self._pushed(ready.id)
        if not pushed and not ended(Sequence(offer.request), ready.token):
            pushed, mark = True, self._pusher.push(ready.pages, receiver, offer.pages, offer.epoch)
        self._pushes.append(Under(ready.id, mark, given_up=False))
        self._connection.send(Computed(ready._replace(pages=()), pushed))

    def _pushed(self, id: int) -> tuple[bool, Any]:
        return self._layered.pushed(id) if self._layered else (False, None)

    def _over(self, push: Under) -> None:
        if push.given_up:
            self._connection.send(GivenUp(push.id))
        else:
            self._sender.sent(push.id)


def run_thread(connection: Connection, site: Site) -> None:
    """What a thread beside its receivers runs."""
    _run(connection, site, lambda _: site.targets)


def run_process(connection: Connection, site: Site) -> None:
    """What a process of its own runs; it ends with its parent, not by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _run(connection, site, lambda chip: tuple(borrow(chip, Name(*name)) for name in site.targets))


def _run(connection: Connection, site: Site, targets: Callable[[Chip], tuple[Any, ...]]) -> None:
    with connection:
        try:
            _serve(connection, site, targets)
        except Exception as error:  # whatever it was, those who wait must hear of it
            with suppress(OSError):
                connection.send(Failed(f"{type(error).__name__}: {error}"))


def _serve(connection: Connection, site: Site, targets: Callable[[Chip], tuple[Any, ...]]) -> None:
    chip = chip_of(site.machine, site.device)
    with chip.apart():
        weights, policy = site.weights(chip), site.policy
        forward = forward_of(weights, policy)
        pool = Pool(forward, chip.xp.zeros(Pool.nbytes(forward), "uint8"))
        sender = Sender(policy)
        kind = LayeredExecutor if site.layered else ChipExecutor
        cache, clock = pool.cache(chip), WallClock()
        engine = engine_of(
            weights, sender, chip, lambda *_: None, clock, cache=cache, kind=kind, prepared=site.prepared
        )
        pusher = Pusher(chip, pool, [Pool(forward, memory) for memory in targets(chip)], policy.buckets.pages)
        try:
            Prefill(engine, pusher, connection).run()
        finally:
            pusher.finish()  # who waits for the end of this may then use its pages
