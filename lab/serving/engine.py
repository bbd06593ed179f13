"""The loop: what arrives is scheduled, submitted, waited for and committed; one step is planned while another runs."""

from collections import deque
from collections.abc import Sequence as Sized
from typing import NamedTuple, Protocol

from lab.serving.clock import Clock
from lab.serving.executor import Executor
from lab.serving.journal import Aborted, Added, Journal
from lab.serving.request import Request, Sequence
from lab.serving.scheduler import Scheduler
from lab.serving.step import StepPlan


class HostCost(NamedTuple):
    """Microseconds that the host is modelled to take for a step, and for each of its rows."""

    step_us: float = 0.0
    row_us: float = 0.0

    def us(self, plan: StepPlan) -> float:
        return self.step_us + self.row_us * plan.rows


class StepFacts(NamedTuple):
    """What a step was: its chip's time, the host's for planning it, its rows and tokens, the tokens it attended to.

    `table_pages` are those that all block tables held when it was planned, `table_tokens` the tokens in them.
    """

    started_us: float
    ended_us: float
    host_us: float
    rows: int
    tokens: int
    kv_tokens: int
    table_pages: int
    table_tokens: int


class Observer(Protocol):
    """Hears of each step when its results are in, and which sequences have a token more."""

    def __call__(self, facts: StepFacts, emitted: Sized[Sequence]) -> object: ...


class Engine:
    """A scheduler and an executor by one clock. With `look_ahead` a step is submitted before the last came back.

    Not for two threads at once.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        clock: Clock,
        observe: Observer,
        look_ahead: bool = True,
        host: HostCost | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.scheduler, self.executor, self.clock = scheduler, executor, clock
        self._observe, self._depth, self._journal = observe, 2 if look_ahead else 1, journal
        self._host = host or HostCost()
        self._facts: deque[StepFacts] = deque()

    def add(self, request: Request) -> Sequence:
        """Queue a request; raises InputError where it can never be served."""
        sequence = self.scheduler.add(request)
        if self._journal:
            self._journal.write(Added(request))
        return sequence

    def abort(self, id: int) -> None:
        """Give a request up, in whatever state; nothing where it has ended."""
        if self.scheduler.abort(id) and self._journal:
            self._journal.write(Aborted(id))

    def step(self) -> bool:
        """Submit a step if there is one, take a result if one is due; False where there was nothing to do."""
        clock, scheduler = self.clock, self.scheduler
        began = clock.now_us
        plan = scheduler.schedule()
        if plan:
            clock.spend(self._host.us(plan))
            self.executor.submit(plan, clock.now_us)
            if self._journal:
                self._journal.plan(plan)
            kv = sum(plan.starts) + plan.tokens
            tables = scheduler.table_pages, scheduler.table_tokens
            host_us = clock.now_us - began
            self._facts.append(StepFacts(0.0, 0.0, host_us, plan.rows, plan.tokens, kv, *tables))
        if not scheduler.in_flight:
            return False
        if not plan or len(scheduler.in_flight) >= self._depth:
            self._take()
        return True

    def _take(self) -> None:
        result = self.executor.result()
        self.clock.wait_until(result.ended_us)
        began = self.clock.now_us
        emitted = self.scheduler.commit(result)
        if self._journal:
            self._journal.write(result)
        facts = self._facts.popleft()
        host_us = facts.host_us + self.clock.now_us - began
        facts = facts._replace(started_us=result.started_us, ended_us=result.ended_us, host_us=host_us)
        self._observe(facts, emitted)


def serve(engine: Engine, requests: Sized[Request]) -> list[Sequence]:
    """Serve requests as they arrive, in the order of their arrival, until all have ended."""
    sequences: list[Sequence] = []
    while True:
        now = engine.clock.now_us
        while len(sequences) < len(requests) and requests[len(sequences)].arrival_us <= now:
            sequences.append(engine.add(requests[len(sequences)]))
        if engine.step():
            continue
        if len(sequences) == len(requests):
            return sequences
        engine.clock.wait_until(requests[len(sequences)].arrival_us)
