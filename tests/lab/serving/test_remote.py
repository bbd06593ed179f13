"""Any order of requests, aborts, turns of a side, pages on their way, and deaths: tokens are right, pages come back.

Both sides speak by real pipes, in one thread; pages are integers that tokens follow from (`reference`).
"""

from collections import deque
from collections.abc import Sequence as Sized
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from reference import ReferenceExecutor, expected

from lab.serving.clock import VirtualClock
from lab.serving.disaggregation.handover import Receiver, Sender
from lab.serving.disaggregation.on_chips import ChipFleet, Placed
from lab.serving.disaggregation.prefill import GivenUp, Prefill
from lab.serving.disaggregation.remote import Remote
from lab.serving.engine import Engine, StepFacts
from lab.serving.policy import Policy
from lab.serving.request import Request, Sequence

PAGE = 2
SENDING = Policy(max_rows=2, max_tokens=5, pages=9, page_tokens=PAGE, max_length=14)
RECEIVING = Policy(max_rows=3, max_tokens=6, pages=9, page_tokens=PAGE, max_length=14)


class Executor(ReferenceExecutor):
    """As an engine calls it."""

    def submit(self, plan: Any, now_us: float = 0.0) -> None:  # noqa: ARG002 (it has no clock)
        super().submit(plan)

    def result(self) -> Any:
        return self.results.popleft()


@dataclass
class Mark:
    """Whether all pages of a push have been written."""

    passed: bool = False


class Link:
    """Pushes whose pages are written one at a time, when `carry` says so; then the flag."""

    def __init__(self, source: Executor, targets: Sized[Executor], flags: Sized[np.ndarray]) -> None:
        self._source, self._targets, self._flags = source, targets, flags
        self.under_way: deque[tuple[list[tuple[int, int]], int, int, int, Mark]] = deque()

    def push(self, pages: Sized[int], target: int, to: Sized[int], epoch: int) -> Mark:
        assert len(pages) == len(to)
        self.under_way.append((list(zip(pages, to, strict=True)), target, to[0], epoch, Mark()))
        return self.under_way[-1][-1]

    def carry(self) -> None:
        if not self.under_way:
            return
        pairs, target, first, epoch, mark = self.under_way[0]
        page, into = pairs.pop()
        assert self._source.scheduler.pool.refs[page], "a page is pushed that its owner gave back"
        assert into in self._targets[target].scheduler.reserved, "a page is written that is not reserved"  # type: ignore[attr-defined]
        self._targets[target].memory[into] = self._source.memory[page]
        if not pairs:
            self._flags[target][first], mark.passed = epoch, True
            self.under_way.popleft()


class Seen:
    """A receiver's flags."""

    def __init__(self, flags: np.ndarray) -> None:
        self._flags = flags

    def look(self) -> np.ndarray:
        return self._flags


class Side:
    """An engine of prompts, alive or killed, and what the fleet knows of it."""

    def __init__(self, receivers: Sized[Executor], flags: Sized[np.ndarray]) -> None:
        ours, theirs = Pipe()
        self.alive = True
        sender = Sender(SENDING)
        executor = Executor(sender)
        self.link, self._connection, self.sender = Link(executor, receivers, flags), theirs, sender
        engine = Engine(sender, executor, VirtualClock(), lambda *_: None)
        self.prefill = Prefill(engine, self.link, theirs)  # type: ignore[arg-type]
        seen: Any = [Seen(one) for one in flags]
        self.remote = Remote(SENDING, ours, seen, lambda: not self.alive, VirtualClock())

    def kill(self) -> None:
        self.alive = False
        self.link.under_way.clear()
        self._connection.close()

    def turn(self) -> None:
        if self.alive:
            self.prefill.turn()


class Host:
    """All of it, and what was heard."""

    def __init__(self, senders: int, receivers: int) -> None:
        kinds = [Receiver(RECEIVING) for _ in range(receivers)]
        executors = [Executor(one) for one in kinds]
        flags = [np.zeros(RECEIVING.pages, np.int64) for _ in kinds]
        self.sides = [Side(executors, flags) for _ in range(senders)]
        self.tokens: dict[int, list[int]] = {}
        self.ends: dict[int, str] = {}
        clock = VirtualClock()
        engines = [Engine(k, e, clock, self.hear) for k, e in zip(kinds, executors, strict=True)]
        placed = [Placed(engine, nullcontext()) for engine in engines]
        self.fleet = ChipFleet(placed, [], [side.remote for side in self.sides], self.hear, self.gone)
        self.receivers = kinds

    def hear(self, _: StepFacts, emitted: Sized[Sequence]) -> None:
        for s in emitted:
            assert s.request.id not in self.ends
            self.tokens.setdefault(s.request.id, []).append(s.tokens[-1])
            if s.reason:
                self.ends[s.request.id] = s.reason

    def gone(self, id: int, why: str) -> None:
        assert why == "it was killed"
        assert id not in self.ends
        assert id not in self.tokens
        self.ends[id] = "gone"


ACTIONS = st.one_of(
    st.tuples(st.just("add"), st.lists(st.integers(0, 1), min_size=1, max_size=9), st.integers(1, 4)),
    st.tuples(st.just("abort"), st.integers(0, 9)),
    st.tuples(st.sampled_from(["turn", "carry"]), st.integers(0, 1)),
    st.tuples(st.just("step")),
    st.tuples(st.just("step")),
)


def whatever_happens(senders: int, receivers: int, actions: list[Any], deaths: list[tuple[int, int]]) -> None:
    """Do that in this order, let all of it end, and look."""
    host = Host(senders, receivers)
    asked: dict[int, Request] = {}
    aborted: set[int] = set()
    for at, (what, *rest) in enumerate(actions):
        for _, number in [d for d in deaths if d[0] == at and d[1] < senders]:
            host.sides[number].kill()
        if what == "add":
            request = asked[len(asked)] = Request(len(asked), tuple(rest[0]), rest[1])
            host.fleet.add(request)
        elif what == "abort" and rest[0] in asked and rest[0] not in host.ends:
            aborted.add(rest[0])
            host.fleet.abort(rest[0])
        elif what == "step":
            host.fleet.step()
        elif what in ("turn", "carry") and rest[0] < senders:
            side = host.sides[rest[0]]
            side.turn() if what == "turn" else side.link.carry()
    for _ in range(2000):
        for side in host.sides:
            side.turn()
            side.link.carry()
        if not host.fleet.step() and not any(side.link.under_way for side in host.sides if side.alive):
            break
    else:
        raise AssertionError("it never ends")
    for side in host.sides:
        for _ in range(4):
            side.turn()
        if side.alive:
            assert side.sender.pool.available == SENDING.pages - 1
    for receiver in host.receivers:
        assert receiver.pool.available == RECEIVING.pages - 1
        assert not receiver.reserved
    for id, request in asked.items():
        whole = expected(request.prompt, request.max_tokens)
        found = host.tokens.get(id, [])
        assert found == whole[: len(found)]
        if host.ends.get(id) == "length":
            assert found == whole
        elif id not in aborted:
            assert host.ends[id] == "gone"
            assert not all(side.alive for side in host.sides)


GIVEN = given(
    senders=st.integers(1, 2),
    receivers=st.integers(1, 2),
    actions=st.lists(ACTIONS, min_size=5, max_size=60),
    deaths=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 1)), max_size=2),
)


def test_whatever_happens_tokens_are_right_and_pages_come_back() -> None:
    settings(max_examples=300, deadline=None)(GIVEN(whatever_happens))()


class AnyEpoch:
    """Flags that are always set."""

    def __getitem__(self, _: int) -> Any:
        return self

    def __eq__(self, _: object) -> bool:
        return True


def at_once(self: Prefill, ready: Any, computed: Any = Prefill._computed) -> None:
    computed(self, ready)
    self._sender.sent(ready.id)


def given_up(self: Remote, id: int, abort: Any = Remote.abort) -> None:
    abort(self, id)
    if id in self._taken and id not in self._under_way:
        self._hear(GivenUp(id))


MISTAKES = {
    "a sequence runs before its flag": (Seen, "look", lambda _: AnyEpoch()),
    "pages are given back while they are pushed": (Prefill, "_computed", at_once),
    "what is given up here is taken for ended there": (Remote, "abort", given_up),
    "the dead are not noticed": (ChipFleet, "_lose", lambda *_: None),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*MISTAKES[name])
    with pytest.raises(Exception):  # noqa: B017, PT011 (whatever breaks first)
        settings(max_examples=300, deadline=None, phases=(Phase.generate,), database=None)(GIVEN(whatever_happens))()
