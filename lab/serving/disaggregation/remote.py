"""A sender that runs elsewhere, as the front knows it: by messages, by flags in receivers' memory, and by its end."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import nan
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

from lab.serving.clock import Clock
from lab.serving.disaggregation.handover import Offer, Ready, Sender, Take
from lab.serving.disaggregation.prefill import (
    Computed,
    Failed,
    GivenUp,
    GiveUp,
    Site,
    run_process,
    run_thread,
)
from lab.serving.disaggregation.pushing import Flags
from lab.serving.policy import Policy
from lab.serving.request import Sequence as Asked
from sim.errors import EnvironmentFailure

RECENT = 256  # prompts
KILLED = "it was killed"
REAP_S = 10.0  # how long one that was killed may take to leave its GPU


class Remote(Sender):
    """Has no steps of its own: what it is given is computed elsewhere, and is `ready` when its pages are there.

    `over` says whether whoever computes is gone, with all that it may still have written.
    """

    def __init__(
        self,
        policy: Policy,
        connection: Connection,
        flags: Sequence[Flags],
        over: Callable[[], bool],
        clock: Clock,
    ) -> None:
        super().__init__(policy)
        self.connection, self.over = connection, over
        self.why = KILLED  # where it is over
        self.exposed_us: deque[float] = deque(maxlen=RECENT)  # from a first token until its pages were seen to be there
        self._flags, self._clock = flags, clock
        self._taken: dict[int, Take] = {}
        self._under_way: dict[int, Ready] = {}

    def compute(self, offer: Offer, receiver: int) -> None:
        take = self._taken[offer.request.id] = Take(offer, receiver)
        self._tell(take)

    def abort(self, id: int) -> Asked | None:
        """Ask to give up what is not computed yet; it ends as what is computed does."""
        self._tell(GiveUp(id))
        return None

    def sent(self, id: int) -> None:
        """Its pages are looked after where they are."""

    def look(self) -> None:
        """Take what has come since: what was computed is ready when its epoch is in the receiver's flag."""
        with suppress(EOFError, OSError):  # it is gone, which `over` says when it is safe
            while self.connection.poll():
                self._hear(self.connection.recv())
        if not self._under_way:
            return
        seen = [flags.look() for flags in self._flags]
        for id in list(self._under_way):
            offer, receiver = self._taken[id]
            if seen[receiver][offer.pages[0]] == offer.epoch:
                ready = self._under_way.pop(id)
                self.exposed_us.append(self._clock.now_us - ready.at_us)
                self._ready(ready)

    def _hear(self, message: Any) -> None:
        if isinstance(message, Computed) and message.pushed:
            self._under_way[message.ready.id] = message.ready._replace(at_us=self._clock.now_us)
        elif isinstance(message, Computed):
            self._ready(message.ready)
        elif isinstance(message, Failed):
            self.why = message.why
        elif isinstance(message, GivenUp):
            self._ready(Ready(message.id, (), 0, nan, 0.0, 0.0))

    def _ready(self, ready: Ready) -> None:
        del self._taken[ready.id]
        self.ready.append(ready._replace(at_us=self._clock.now_us))

    def _tell(self, message: Any) -> None:
        with suppress(OSError):  # it is gone
            self.connection.send(message)


class Worker:
    """Where a site's engine runs: a process of its own, or a thread of this one."""

    def __init__(self, site: Site, apart: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=run_process, args=(other, site), daemon=True) if apart else None
        self._runs: Any = self.process or Thread(target=run_thread, args=(other, site), daemon=True)
        self._runs.start()
        if apart:
            other.close()  # or nobody would hear that the process is gone

    def wait(self) -> None:
        """Return when it can be given offers; raises EnvironmentFailure where it never will."""
        said = Failed(KILLED)
        with suppress(EOFError, ConnectionResetError):
            said = self.connection.recv()
        if isinstance(said, Failed):
            raise EnvironmentFailure(f"an engine of prompts cannot begin: {said.why}")

    def over(self) -> bool:
        """Whether it is gone: a process has then left its GPU, and nothing of it runs there."""
        return not self._runs.is_alive()

    def stop(self) -> None:
        """End it, and wait for that."""
        self.connection.close()
        self._runs.join(REAP_S)
        if self.process and self.process.is_alive():
            self.process.kill()
            self.process.join(REAP_S)
