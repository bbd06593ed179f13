"""Any requests, aborts, deaths and delays on a pair of tiny pools or several: every page and every token is right.

Pages hold integers that tokens follow from (`reference`), so one that is written late, pushed early or taken over twice
changes a token.
"""

import inspect
from collections import Counter
from types import ModuleType
from typing import Any

import pytest
from hypothesis import Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from reference import ReferenceExecutor, expected

from lab.serving.disaggregation import front, handover
from lab.serving.disaggregation.front import Front
from lab.serving.disaggregation.handover import Receiver, Sender
from lab.serving.policy import Policy
from lab.serving.request import ABORT, Request
from sim.errors import InputError

DEPTH = 2


@st.composite
def policies(draw: Any) -> Policy:
    rows, page, count = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(4, 9))
    return Policy(
        max_rows=rows,
        max_tokens=rows + draw(st.integers(1, 8)),
        pages=count,
        page_tokens=page,
        max_length=page * (count - 1) + 1,
        prefix_caching=draw(st.booleans()),
    )


class Pair(RuleBasedStateMachine):
    """Requests come, both sides plan and get results, pushes begin and end, any engine dies; in any order."""

    FRONT: Any = Front

    def __init__(self) -> None:
        super().__init__()
        self.requests: dict[int, Request] = {}
        self.aborted: set[int] = set()
        self.pushes: dict[int, Any] = {}  # under way, by request

    @initialize(sending=policies(), receiving=policies(), senders=st.integers(1, 2), receivers=st.integers(1, 2))
    def start(self, sending: Policy, receiving: Policy, senders: int, receivers: int) -> None:
        page = {"page_tokens": sending.page_tokens, "max_length": min(sending.max_length, receiving.max_length)}
        fields = {
            **vars(receiving),
            **page,
            "pages": max(receiving.pages, -(-page["max_length"] // sending.page_tokens) + 1),
        }
        self.front = self.FRONT(
            [handover.Sender(sending) for _ in range(senders)],
            [handover.Receiver(Policy(**fields)) for _ in range(receivers)],
        )
        engines = [*self.front.senders.values(), *self.front.receivers.values()]
        self.executors = {id(s): ReferenceExecutor(s) for s in engines}
        self.touched: dict[int, list[set[int]]] = {id(s): [] for s in engines}  # pages, by steps in flight
        self.epochs: dict[int, int] = {}
        self.lost_tokens = False  # with an engine of decode

    def engines(self) -> list[Sender | Receiver]:
        return [*self.front.senders.values(), *self.front.receivers.values()]

    @rule(data=st.data())
    def arrive(self, data: Any) -> None:
        limit = min(e.policy.max_length for e in self.engines()) if self.engines() else 4
        length = data.draw(st.integers(1, max(1, limit - 1)))
        prompt = tuple(data.draw(st.lists(st.integers(0, 1), min_size=length, max_size=length)))
        ends = data.draw(st.sampled_from([(), (2,)]))
        request = Request(len(self.requests), prompt, data.draw(st.integers(1, 6)), ends=ends)
        try:
            self.front.add(request)
        except InputError:
            return
        self.requests[request.id] = request
        self.front.offer()

    @rule(data=st.data())
    @precondition(lambda self: self.requests)
    def give_up(self, data: Any) -> None:
        chosen = data.draw(st.sampled_from(sorted(self.requests)))
        before = self.front.sequences.get(chosen)
        if before is None or not before.reason or any(r.id == chosen for r in self.front.waiting):
            self.aborted.add(chosen)
        self.front.abort(chosen)

    @rule(data=st.data())
    @precondition(lambda self: self.engines())
    def plan(self, data: Any) -> None:
        engine = data.draw(st.sampled_from(self.engines()))
        if len(engine.in_flight) < DEPTH:
            self.step(engine)

    def step(self, engine: Any) -> None:
        plan = engine.schedule()
        if plan:
            self.touched[id(engine)].append({page for s in plan.sequences for page in s.pages})
            self.executors[id(engine)].submit(plan)

    @rule(data=st.data())
    def come_back(self, data: Any) -> None:
        busy = [engine for engine in self.engines() if engine.in_flight]
        if busy:
            self.result(data.draw(st.sampled_from(busy)))

    def result(self, engine: Any) -> None:
        self.touched[id(engine)].pop(0)
        engine.commit(self.executors[id(engine)].results.popleft())
        for number, sender in self.front.senders.items():
            if sender is engine:
                for flight in self.front.computed(number):
                    self.pushes[flight.offer.request.id] = flight
        self.front.offer()

    @rule(data=st.data())
    @precondition(lambda self: self.pushes)
    def write_a_page(self, data: Any) -> None:
        """A push that is under way writes one of its pages, perhaps once more."""
        flight = self.pushes[data.draw(st.sampled_from(sorted(self.pushes)))]
        self.write(flight, data.draw(st.integers(0, len(flight.offer.pages) - 1)))

    def write(self, flight: Any, at: int) -> None:
        sender, receiver = self.front.senders[flight.sender], self.front.receivers.get(flight.receiver)
        assert sender.pool.refs[flight.ready.pages[at]], "a page is pushed that its owner gave back"
        if receiver:
            page = flight.offer.pages[at]
            assert page in receiver.reserved, "a page is written that is not reserved"
            source = self.executors[id(sender)].memory[flight.ready.pages[at]]
            self.executors[id(receiver)].memory[page] = source

    @rule(data=st.data())
    @precondition(lambda self: self.pushes)
    def flag(self, data: Any) -> None:
        self.push(data.draw(st.sampled_from(sorted(self.pushes))))

    def push(self, id: int) -> None:
        flight = self.pushes.pop(id)
        assert len(flight.offer.pages) == len(flight.ready.pages)
        for at in range(len(flight.offer.pages)):
            self.write(flight, at)
        last = self.epochs.get(flight.receiver, 0)
        assert flight.offer.epoch != last, "an epoch comes twice"
        self.epochs[flight.receiver] = flight.offer.epoch
        self.front.pushed(id)
        self.front.offer()

    @rule(data=st.data())
    @precondition(lambda self: len(self.engines()) > 2)
    def die(self, data: Any) -> None:
        front = self.front
        kind = data.draw(st.sampled_from([k for k in ("senders", "receivers") if len(getattr(front, k)) > 0]))
        chosen = data.draw(st.sampled_from(sorted(getattr(front, kind))))
        if kind == "senders":
            self.pushes = {id: flight for id, flight in self.pushes.items() if flight.sender != chosen}
            front.sender_died(chosen)
        else:
            front.receiver_died(chosen)
            self.lost_tokens = True
        front.offer()

    @invariant()
    def all_is_well(self) -> None:
        if not hasattr(self, "front"):
            return
        for engine in self.engines():
            states = engine.pool.states()
            every = [page for pages in states.values() for page in pages]
            assert sorted(every) == list(range(1, engine.policy.pages)), states
            apart = (
                [p for pages, _ in engine.held.values() for p in pages] if hasattr(engine, "held") else engine.reserved
            )
            owned = Counter([p for s in engine.running for p in s.pages] + apart)
            touched = set().union(*self.touched[id(engine)])
            assert not touched & set(states["free"] + states["cached"]), "a step in flight touches a free page"
            assert all(engine.pool.refs[page] == owned[page] for page in range(engine.policy.pages))
            if hasattr(engine, "offers"):
                assert all(owned[page] == 1 for page in apart), "a reserved page is in a table too"
        for sender in self.front.senders.values():
            assert all(self.front.flights[number].wanted for number in sender.sequences), (
                "nobody wants what is computed"
            )
        for number, request in self.requests.items():
            sequence = self.front.sequences.get(number)
            if sequence is None:
                continue
            whole = expected(request.prompt, request.max_tokens, request.ends)
            assert sequence.sampled == whole[: len(sequence.sampled)]
            assert len(sequence.token_us) == len(sequence.sampled)
            if sequence.reason and sequence.reason != ABORT:
                assert sequence.sampled == whole

    def teardown(self) -> None:
        """All that is under way ends, and every page of those alive is free."""
        if not hasattr(self, "front"):
            return
        for _ in range(4000):
            for id in list(self.pushes):
                self.push(id)
            for engine in self.engines():
                self.step(engine)
                while engine.in_flight:
                    self.result(engine)
                self.all_is_well()
            self.front.offer()
            if not (self.pushes or self.front.flights or self.front.waiting or any(e.busy for e in self.engines())):
                break
        else:
            raise AssertionError("it never ends")
        for engine in self.engines():
            assert engine.pool.available == engine.policy.pages - 1
        ends = {id: self.front.sequences[id].reason for id in self.requests}
        assert all(ends.values())
        if self.front.senders and not self.lost_tokens:
            assert {id for id, reason in ends.items() if reason == ABORT} <= self.aborted, "it was to be begun again"


STEPS = settings(
    max_examples=50, phases=(Phase.explicit, Phase.generate), stateful_step_count=50, deadline=None, derandomize=True
)
TestPair = Pair.TestCase
TestPair.settings = STEPS

# (module, right, wrong): what hand-overs have got wrong.
MUTANTS = {
    "pages given back while they are written": (
        handover,
        "            self.given_up[id] = self.offers.pop(id)\n            sequence.pages = []\n",
        "            self.offers.pop(id)\n",
    ),
    "pages never given back when the writer dies": (
        handover,
        "self.pool.release(self.given_up.pop(id).pages, -1)\n        if self.offers",
        "pass\n        if self.offers",
    ),
    "pages not held while they are pushed": (handover, "self.pool.share(page)", "pass"),
    "held for ever": (front, "            self.senders[flight.sender].sent(id)", "            pass"),
    "held for ever when given up": (
        handover,
        "        if sequence:\n            self.sent(id)",
        "        if False:\n            self.sent(id)",
    ),
    "given up and free while a step writes them": (
        handover,
        "list(sequence.pages), sequence.last_step",
        "list(sequence.pages), -1",
    ),
    "a flag without an epoch": (handover, "self._epochs += 1", "self._epochs = 1"),
    "the last token of the prompt computed twice": (
        handover,
        "sequence.scheduled = sequence.computed = len(sequence.request.prompt)",
        "sequence.scheduled = sequence.computed = len(sequence.request.prompt) - 1",
    ),
    "the dead sender's requests forgotten": (
        front,
        "self.waiting.appendleft(flight.offer.request)\n        self._end",
        "pass\n        self._end",
    ),
    "the dead receiver's prompts still computed": (
        front,
        "            del gone.sequences[id]\n            self._withdraw(id, flight)",
        "            del gone.sequences[id]",
    ),
    "pages kept of what was given up before its push": (
        front,
        "        if flight.receiver in self.receivers:\n            self.receivers[flight.receiver].lost(id)\n\n",
        "\n",
    ),
}

# The examples of these find such mistakes soon; any others find them too, some after a hundred times as many.
SEEDS = {
    "pages given back while they are written": 1,
    "the dead sender's requests forgotten": 2,
    "the dead receiver's prompts still computed": 2,
}

IMPORT = "from lab.serving.disaggregation.handover import Offer, Ready, Receiver, Sender, ended"


def changed(name: str) -> type[Pair]:
    """The machine over modules of which one is changed."""
    changed_module, right, wrong = MUTANTS[name]
    names: dict[str, Any] = {}
    for module in (handover, front):
        text = inspect.getsource(module)
        if module is changed_module:
            assert text.count(right) == 1, name
            text = text.replace(right, wrong)
        made = ModuleType(module.__name__)
        made.__dict__.update({k: v for k, v in names.items() if not k.startswith("__")})
        exec(compile(text.replace(IMPORT, ""), module.__name__, "exec"), made.__dict__)
        names = made.__dict__
    senders, receivers, front_of = names["Sender"], names["Receiver"], names["Front"]

    class Changed(Pair):
        FRONT = staticmethod(lambda s, r: front_of([senders(x.policy) for x in s], [receivers(x.policy) for x in r]))

    return Changed


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mistake_is_found(name: str) -> None:
    found = settings(STEPS, max_examples=400, phases=(Phase.generate,), database=None)
    machine = seed(SEEDS[name])(changed(name)) if name in SEEDS else changed(name)
    with pytest.raises(Exception):  # noqa: B017, PT011 (whatever breaks first)
        run_machine(machine, settings=found)
