"""Any requests, aborts and delays on tiny pools: pages, steps and tokens are right at every moment."""

import inspect
import sys
from types import ModuleType
from typing import Any, ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from invariants import require_invariants, require_plan
from reference import ReferenceExecutor, expected

from lab.serving import pages, scheduler
from lab.serving.policy import Policy
from lab.serving.request import ABORT, Request
from lab.serving.scheduler import Scheduler
from sim.errors import InputError
from tests.strategies import examples

DEPTH = 2


@st.composite
def policies(draw: Any) -> Policy:
    page = draw(st.integers(1, 4))
    rows = draw(st.integers(1, 6))
    count = draw(st.integers(3, 8))
    return Policy(
        max_rows=rows,
        max_tokens=rows + draw(st.integers(1, 12)),
        pages=count,
        host_pages=draw(st.sampled_from([1, count, 2 * count])),
        page_tokens=page,
        max_length=page * (count - 1) + 1,
        prefix_caching=draw(st.booleans()),
        continuous=draw(st.booleans()),
        preemption=draw(st.sampled_from(["swap", "recompute"])),
        bypass=draw(st.integers(0, 2)),
    )


class Loop(RuleBasedStateMachine):
    """Requests come, steps are planned and come back, requests are given up, in any order."""

    SCHEDULER: ClassVar[type[Scheduler]] = Scheduler

    def __init__(self) -> None:
        super().__init__()
        self.requests: dict[int, Any] = {}
        self.holds: dict[int, set[int]] = {}
        self.expected: dict[int, list[int]] = {}

    @initialize(policy=policies())
    def start(self, policy: Policy) -> None:
        self.scheduler = self.SCHEDULER(policy)
        self.executor = ReferenceExecutor(self.scheduler)

    @rule(data=st.data(), several=st.integers(1, 5))
    def arrive(self, data: Any, several: int) -> None:
        p = self.scheduler.policy
        for _ in range(several):
            length = data.draw(st.sampled_from([1, 2, p.page_tokens, 2 * p.page_tokens, 3 * p.page_tokens + 1]))
            prompt = tuple(data.draw(st.lists(st.integers(0, 1), min_size=length, max_size=length)))
            of = data.draw(st.sampled_from([None, *self.scheduler.sequences]))
            if of is not None:
                prompt = self.scheduler.sequences[of].request.prompt
            most = data.draw(st.sampled_from([1, 3, max(1, p.max_length - length)]))
            ends = data.draw(st.sampled_from([(), (), (2,)]))
            request = Request(len(self.requests), prompt, most, ends=ends, fork_of=of)
            try:
                self.requests[request.id] = self.scheduler.add(request)
                self.expected[request.id] = expected(prompt, most, ends)
            except InputError:
                assert len(prompt) + most > p.max_length

    @rule(data=st.data())
    @precondition(lambda self: self.scheduler.sequences)
    def give_up(self, data: Any) -> None:
        sequences = self.scheduler.sequences
        away = [id for id in sequences if sequences[id].host]
        chosen = data.draw(st.sampled_from(away or sorted(sequences)))
        assert self.scheduler.abort(chosen).reason == ABORT
        assert self.scheduler.abort(chosen) is None

    @rule()
    @precondition(lambda self: len(self.scheduler.in_flight) < DEPTH)
    def plan(self) -> None:
        own = {
            s.request.id: [page for page in s.pages if self.scheduler.pool.refs[page] == 1]
            for s in self.scheduler.running
        }
        plan = self.scheduler.schedule()
        if plan is None:
            assert self.scheduler.in_flight or not self.scheduler.sequences, "there is work and nothing is done"
            return
        require_plan(self.scheduler, plan, self.holds)
        lost = [note.id for note in plan.notes if note.what in ("recompute", "swap")]
        needed = len(plan.new_pages) + sum(note.what == "stall" for note in plan.notes)
        assert sum(bool(own[id]) for id in lost) <= needed + 1, "more were preempted than pages were needed"
        moved = {c.source for c in plan.copies + plan.swapped_out} | {c.target for c in plan.swapped_in}
        self.holds[plan.step] = moved.union(*(s.pages for s in plan.sequences))
        self.executor.submit(plan)

    @rule()
    @precondition(lambda self: self.scheduler.in_flight)
    def come_back(self) -> None:
        result = self.executor.results.popleft()
        del self.holds[result.step]
        self.scheduler.commit(result)

    @invariant()
    def all_is_well(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        require_invariants(self.scheduler, self.holds)
        for id, sequence in self.requests.items():
            whole = self.expected[id]
            assert sequence.sampled == whole[: len(sequence.sampled)]
            assert len(sequence.token_us) == len(sequence.sampled)
            if sequence.reason and sequence.reason != ABORT:
                assert sequence.sampled == whole

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        # Each step computes a token at least, and a preempted sequence computes its own again, the oldest never.
        work = sum(s.limit for s in self.requests.values()) + 1
        for _ in range(work * work + 8):
            if not self.scheduler.busy:
                break
            if self.scheduler.in_flight:
                self.come_back()
            self.plan()
            self.all_is_well()
        assert not self.scheduler.busy, "it never ends"
        assert self.scheduler.pool.available == self.scheduler.policy.pages - 1


class Swapping(Loop):
    """The same where what is preempted goes to the host."""

    @initialize(policy=policies().filter(lambda policy: policy.host_pages > 1 and policy.preemption == "swap"))
    def start(self, policy: Policy) -> None:
        self.scheduler = self.SCHEDULER(policy)
        self.executor = ReferenceExecutor(self.scheduler)


STEPS = settings(examples(30), stateful_step_count=50, deadline=None, derandomize=True)
TestLoop = Loop.TestCase
TestLoop.settings = STEPS

# (module, right, wrong): mistakes that serving loops have had.
MUTANTS = {
    "a page too few at a boundary": (
        scheduler,
        "return -(-tokens // self.policy.page_tokens)",
        "return -(-(tokens - 1) // self.policy.page_tokens)",
    ),
    "fence forgotten": (pages, "if fence <= self._completed:", "if True:"),
    "fence of the step before": (
        scheduler,
        "self.pool.release(sequence.pages, sequence.last_step)",
        "self.pool.release(sequence.pages, sequence.last_step - 1)",
    ),
    "published when scheduled": (
        scheduler,
        "        self.table_tokens += count\n",
        "        self.table_tokens += count\n        sequence.computed = end\n        self._publish(sequence)\n",
    ),
    "whole prompt found": (
        pages,
        "range(0, len(tokens) - self.page_tokens, self.page_tokens)",
        "range(0, len(tokens), self.page_tokens)",
    ),
    "prefix without its beginning": (pages, "PageKey(chain, tokens[first", 'PageKey("", tokens[first'),
    "columns not cleared": (
        scheduler,
        "self.slots.leave(sequence)",
        "(self.slots._free.append(sequence.slot), setattr(sequence, 'slot', -1))",
    ),
    "evicted but still found": (pages, "        del self._tree[held[1]]\n", ""),
    "fork copies no page": (
        scheduler,
        "plan.copies.append(Copy(parent.pages[len(pages)], sequence.pages[-1]))",
        "pass",
    ),
    "fork writes its parent's page": (
        scheduler,
        "self._extend(plan, sequence, found)",
        "(self.pool.share(parent.pages[len(pages)]), self._append(sequence, parent.pages[len(pages)]))",
    ),
    "released twice": (scheduler, "        sequence.pages = []\n        self.slots", "        self.slots"),
    "one token too many": (
        scheduler,
        "if sequence.reason:\n                continue",
        "if False:\n                continue",
    ),
    "host's pages kept": (scheduler, "self.host.release(sequence.host, sequence.last_step)", "pass"),
    "preempts for fenced pages": (scheduler, "if self.pool.fenced > promised:", "if False:"),
}

OF_SWAPS = ("host's pages kept", "preempts for fenced pages")  # rare where few sequences are swapped


@pytest.mark.parametrize("mistake", MUTANTS)
def test_mistakes_are_caught(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, right, wrong = MUTANTS[mistake]
    source = inspect.getsource(module)
    assert source.count(right) == 1, "the mutant changes nothing"
    made = ModuleType("mutant")
    monkeypatch.setitem(sys.modules, "mutant", made)  # where dataclasses look their annotations up
    exec(compile(source.replace(right, wrong), "mutant", "exec"), made.__dict__)
    if module is pages:
        monkeypatch.setattr(scheduler, "PagePool", made.PagePool)
    wrong_one = scheduler.Scheduler if module is pages else made.Scheduler

    class Mutant(Swapping if mistake in OF_SWAPS else Loop):  # type: ignore[misc]
        SCHEDULER = wrong_one

    found = settings(STEPS, phases=[Phase.generate], max_examples=1000)
    with pytest.raises((AssertionError, ValueError, KeyError, IndexError, InputError, TypeError)):
        run_state_machine_as_test(Mutant, settings=found)
