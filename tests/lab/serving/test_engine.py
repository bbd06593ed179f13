"""The loop by a virtual clock: progress, replay of its journal, and that its time depends on nothing but its inputs."""

import time
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.serving import journal
from lab.serving.clock import VirtualClock
from lab.serving.engine import Engine, HostCost, StepFacts, serve
from lab.serving.executor import PredictedExecutor, ReplayedExecutor, scripted
from lab.serving.journal import Journal
from lab.serving.policy import Policy
from lab.serving.power import Coefficients, Heat, Work
from lab.serving.request import Request
from lab.serving.scheduler import Scheduler
from lab.serving.step import StepPlan
from sim.errors import InputError

POLICY = Policy(max_rows=4, max_tokens=12, pages=14, host_pages=20, page_tokens=2, max_length=24, preemption="swap")
EVER_COOL = Coefficients(rest=0.0, tensor=0.1, memory=0.0, average_us=100.0, slower=1.0, decode=0.0, cool=1.0)


class Pace:
    """A microsecond a token, ten a step; rows of one token cost an eighth for each that they attend to."""

    def plan_us(self, plan: StepPlan, idle_us: float) -> float:  # noqa: ARG002
        return 10.0 + plan.tokens + (sum(plan.starts[: plan.singles]) + plan.singles) / 8

    def step(self, singles: int, tokens: int, single_kv: int, chunk_start: int) -> Work:  # noqa: ARG002
        return Work(10.0 + tokens + single_kv / 8, float(tokens), mixed=tokens > singles)

    def heat(self) -> Heat:
        return Heat(EVER_COOL, 1e6, 1e6)

    def recompute_us(self, tokens: int) -> float:
        return 10.0 + tokens

    def swap_us(self, pages: int) -> float:
        return 4.0 * pages


@st.composite
def loads(draw: Any) -> list[Request]:
    found, at = [], 0.0
    for i in range(draw(st.integers(1, 12))):
        at += draw(st.sampled_from([0.0, 0.0, 5.0, 100.0]))
        prompt = draw(st.lists(st.integers(0, 1), min_size=1, max_size=14))
        found.append(Request(i, tuple(prompt), draw(st.integers(1, 10)), arrival_us=at))
    return found


def run(requests: list[Request], policy: Policy, file: Any = None, look_ahead: bool = True, **options: Any) -> Any:
    facts: list[StepFacts] = []
    scheduler = Scheduler(policy, Pace())
    engine = Engine(
        scheduler,
        options.pop("executor", None) or PredictedExecutor(Pace(), scripted(50), gap_us=1.0),
        VirtualClock(),
        lambda fact, _: facts.append(fact),
        look_ahead,
        HostCost(3.0, 0.5),
        Journal(file, policy) if file else None,
    )
    return serve(engine, requests), facts, engine


@given(loads(), st.booleans(), st.sampled_from(["swap", "recompute", "cheaper"]), st.sampled_from([0.0, 18.0]))
@settings(deadline=None)
def test_all_requests_end_and_steps_neither_overlap_nor_precede_their_plans(
    requests: list[Request], look_ahead: bool, preemption: str, itl_us: float
) -> None:
    policy = Policy(**{**journal.asdict(POLICY), "preemption": preemption, "itl_us": itl_us})
    sequences, facts, engine = run(requests, policy, look_ahead=look_ahead)
    assert [len(s.sampled) for s in sequences] == [r.max_tokens for r in requests]
    assert not engine.scheduler.busy
    assert engine.scheduler.table_pages == engine.scheduler.table_tokens == 0
    for before, after in pairwise(facts):
        assert after.ended_us - after.us >= before.ended_us + 1.0
    for s in sequences:
        times = [s.request.arrival_us, *s.token_us]
        assert times == sorted(times)
        assert len(set(s.token_us)) == len(s.token_us), "two tokens of one sequence in one step"
    for f in facts:
        assert f.table_pages * POLICY.page_tokens - f.table_tokens < POLICY.max_rows * POLICY.page_tokens


@given(loads(), st.sampled_from([14.0, 18.0, 25.0]))
@settings(deadline=None)
def test_steps_keep_an_itl_budget_where_a_page_of_a_prompt_allows_it(requests: list[Request], itl_us: float) -> None:
    policy = Policy(**{**journal.asdict(POLICY), "itl_us": itl_us, "pages": 100})
    _, facts, _ = run(requests, policy, look_ahead=False)
    most = max(10.0 + POLICY.max_rows + POLICY.page_tokens, itl_us)
    attended = POLICY.max_rows * POLICY.max_length / 8  # a budget is of the prompts; what decodes cost is given
    assert all(f.us <= most + attended for f in facts)
    mixed = [f for f in facts if f.tokens > f.rows + POLICY.page_tokens]
    assert all(10.0 + f.tokens <= itl_us for f in mixed)


def test_an_itl_budget_is_kept_by_what_steps_were_measured_to_take() -> None:
    class Slow(Pace):
        def plan_us(self, plan: StepPlan, idle_us: float) -> float:
            return 1.5 * super().plan_us(plan, idle_us)

    policy = Policy(max_rows=4, max_tokens=640, pages=200, max_length=2000, itl_us=700.0, prefix_caching=False)
    executor = PredictedExecutor(Slow(), scripted(50))
    _, facts, _ = run([Request(i, (1,) * 1900, 2) for i in range(6)], policy, executor=executor)
    mixed = [fact for fact in facts if fact.tokens > fact.rows]
    assert mixed[0].tokens == 640
    assert mixed[0].us > policy.itl_us  # it was not known yet
    learnt = [fact for fact in mixed[8:] if fact.tokens > 64]
    assert learnt
    assert all(fact.us <= policy.itl_us for fact in learnt)


@given(loads())
@settings(deadline=None)
def test_a_journal_is_made_again_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, requests: list[Request]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "loop.jsonl"
    with path.open("wb") as file:
        sequences, facts, _ = run(requests, POLICY, file)
    lines = list(journal.read(path))
    made = list(journal.decisions(lines))
    assert len(made) == len(facts)
    assert list(journal.replay(lines, Pace())) == made
    again = BytesIO()
    results = (line for line in lines if isinstance(line, journal.StepResult))
    others, _, _ = run(requests, POLICY, again, executor=ReplayedExecutor(results))
    assert again.getvalue() == path.read_bytes()
    assert [s.tokens for s in others] == [s.tokens for s in sequences]
    assert journal.first_difference(made, made) is None


def test_a_changed_journal_is_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "loop.jsonl"
    with path.open("wb") as file:
        run([Request(0, (1, 2, 3), 4)], POLICY, file)
    lines = list(journal.read(path))
    at = next(i for i, line in enumerate(lines) if isinstance(line, journal.Decision))
    wrong = journal.msgspec.structs.replace(lines[at], counts=[2])
    changed = [*lines[:at], wrong, *lines[at + 1 :]]
    found = journal.first_difference(journal.decisions(changed), journal.replay(changed, Pace()))
    assert found == (0, wrong, lines[at])
    with pytest.raises(InputError, match="where none is awaited"):
        list(journal.replay([*lines[:at], *lines[at + 1 :]], Pace()))
    path.write_bytes(b'["no line"]\n')
    with pytest.raises(InputError, match="line 1 is no line of a journal"):
        list(journal.read(path))


def test_virtual_time_does_not_look_at_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(i, (1, 2, 3, i), 5, arrival_us=7.0 * i) for i in range(6)]
    first, facts, _ = run(requests, POLICY)

    def refuse() -> float:
        raise AssertionError("the wall's clock was read")

    for name in ("time", "perf_counter", "monotonic"):
        monkeypatch.setattr(time, name, refuse)
    second, others, _ = run(requests, POLICY)
    monkeypatch.undo()
    assert facts == others
    assert [s.token_us for s in first] == [s.token_us for s in second]


def test_a_request_that_does_not_fit_is_passed_as_often_as_the_policy_says() -> None:
    policy = Policy(max_rows=4, max_tokens=64, pages=9, page_tokens=2, max_length=17, bypass=2, prefix_caching=False)
    scheduler = Scheduler(policy)
    executor = PredictedExecutor(Pace(), scripted(50))
    scheduler.add(Request(0, (1,) * 4, 12))
    large = Request(1, (2,) * 14, 2)
    order: list[int] = []

    def step() -> None:
        plan = scheduler.schedule()
        if plan:
            order.extend(note.id for note in plan.notes if note.what == "admit")
            executor.submit(plan, 0.0)
            scheduler.commit(executor.result())

    step()
    scheduler.add(large)
    for i in range(2, 12):
        scheduler.add(Request(i, (3,), 1))
        step()
    for _ in range(40):
        step()
    assert order.index(1) == 3, "two may pass it, then it is admitted before all others"
    assert not scheduler.busy


def test_what_can_never_be_served_is_refused_at_the_door() -> None:
    scheduler = Scheduler(Policy(pages=4, page_tokens=2, max_length=100, max_rows=1, max_tokens=8))
    for prompt, most, reason in (
        ((), 1, "at least one"),
        ((1,), 0, "at least one"),
        ((1,) * 100, 1, "longest sequence"),
    ):
        with pytest.raises(InputError, match=reason):
            scheduler.add(Request(0, prompt, most))
    with pytest.raises(InputError, match="3 pages cannot hold"):
        scheduler.add(Request(0, (1,) * 5, 3))
    scheduler.add(Request(0, (1,) * 5, 2))
    with pytest.raises(InputError, match="already under way"):
        scheduler.add(Request(0, (1,), 1))
    with pytest.raises(InputError, match="predicted costs"):
        Scheduler(Policy(itl_us=10.0))
    with pytest.raises(InputError, match="more tokens than rows"):
        Policy(max_rows=8, max_tokens=8)
