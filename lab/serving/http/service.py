"""A thread that runs the loop, and queues between it and those who wait for tokens."""

import asyncio
import gc
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import isnan
from typing import Any, NamedTuple

from msgspec import structs

from lab.serving.engine import Engine, StepFacts
from lab.serving.http.protocol import Refusal
from lab.serving.request import Request
from lab.serving.request import Sequence as Served
from sim.errors import InputError, LabError

IDLE_S = 0.05  # how often a thread without work looks whether it should end


class Token(NamedTuple):
    """A token of an answer, the last where `reason` says why."""

    token: int
    log_probability: float | None
    reason: str
    at_us: float  # by the loop's clock, since the request arrived
    cached: int  # tokens of the prompt that were found computed


class Service:
    """Runs an engine in a thread of its own. `failed` says why it has died; the rest may be asked from any thread.

    `observe` hears of every step in that thread; `died` is called there when the loop fails.
    """

    def __init__(
        self, engine: Engine, most_waiting: int, observe: Callable[[StepFacts, Sequence[Served]], None],
        died: Callable[[], None],
    ) -> None:  # fmt: skip
        self.engine, self.failed = engine, ""
        self._most_waiting, self._observe, self._died = most_waiting, observe, died
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake, self._ending = threading.Event(), threading.Event()
        self._sinks: dict[int, Callable[[Any], None]] = {}
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._numbers = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; who waits is told."""
        self._ending.set()
        self._wake.set()
        self._thread.join()

    @property
    def open(self) -> int:
        """Requests under way."""
        return len(self._sinks)

    def submit(self, requests: Sequence[Request], sink: Callable[[int, Any], None]) -> list[int]:
        """Queue the answers to one question; `sink` hears of each its Tokens or the error that ends it.

        Returns their numbers. Raises Refusal where the queue is full or the loop is dead.
        """
        with self._lock:
            if self.failed:
                raise Refusal(503, f"the server is going down: {self.failed}")
            if self.open + len(requests) > self._most_waiting:
                raise Refusal(429, f"{self.open} requests are under way; try again", code="rate_limit_exceeded")
            ids = list(range(self._numbers, self._numbers + len(requests)))
            self._numbers += len(requests)
            for choice, id in enumerate(ids):
                self._sinks[id] = partial(sink, choice)
        numbered = [
            structs.replace(request, id=id, fork_of=None if id == ids[0] else ids[0])
            for id, request in zip(ids, requests, strict=True)
        ]
        self._tell(partial(self._add, numbered))
        return ids

    def abort(self, ids: Sequence[int]) -> None:
        """Give requests up; nothing where they have ended."""
        for id in ids:
            self._tell(partial(self._end, id))

    def _tell(self, what: Callable[[], Any]) -> None:
        self._inbox.append(what)
        self._wake.set()

    def _add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            try:
                self.engine.add(structs.replace(request, arrival_us=self.engine.clock.now_us))
            except InputError as error:
                self._answer(request.id, Refusal(400, str(error), "prompt", "context_length_exceeded"))

    def _end(self, id: int) -> None:
        self._sinks.pop(id, None)
        self.engine.abort(id)

    def _answer(self, id: int, item: Any) -> None:
        sink = self._sinks.get(id)
        if isinstance(item, Refusal) or item.reason:
            self._sinks.pop(id, None)
        if sink:
            sink(item)

    def hear(self, facts: StepFacts, emitted: Sequence[Served]) -> None:
        """What the engine observes: a step, and whose tokens came."""
        for s in emitted:
            score = None if isnan(s.log_probability) else s.log_probability
            at = s.token_us[-1] - s.request.arrival_us
            self._answer(s.request.id, Token(s.tokens[-1], score, s.reason, at, s.found))
        self._observe(facts, emitted)

    def gone(self, id: int, why: str) -> None:
        """The engine that had a request is gone, and no other can answer it; called in the loop's thread."""
        self._answer(id, Refusal(503, f"the engine that computed this request is gone: {why}"))

    def _run(self) -> None:
        gc.freeze()  # what was loaded stays: collections need not look at it
        try:
            while not self._ending.is_set():
                while self._inbox:
                    self._inbox.popleft()()
                if not self.engine.step():
                    self._wake.wait(IDLE_S)
                    self._wake.clear()
        except Exception as error:  # whatever it was, those who wait must hear of it
            self.failed = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
        with self._lock:
            self.failed = self.failed or "it was stopped"
        for id in list(self._sinks):
            self._answer(id, Refusal(503, f"the server is going down: {self.failed}"))
        if not self._ending.is_set():
            self._died()


def sink_of(loop: asyncio.AbstractEventLoop, queue: "asyncio.Queue[tuple[int, Any]]") -> Callable[[int, Any], None]:
    """What puts items into a queue of an event loop, from any thread; nothing where that loop is gone."""

    def put(choice: int, item: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, (choice, item))

    return put
