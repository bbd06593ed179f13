"""The loop: what arrives is scheduled, submitted, waited for and committed; one step is planned while another runs."""

from collections import deque
from collections.abc import Sequence as Sized
from typing import NamedTuple, Protocol

from msgspec import structs

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
    """What a step was: its chip's times, the host's, its rows and tokens, the tokens it attended to.

    `table_pages` are those that all block tables held when it was planned, `table_tokens` the tokens in them.
    """

    ended_us: float
    us: float
    idle_us: float
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
        self.journal = journal
        self._observe, self._depth = observe, 2 if look_ahead else 1
        self._host = host or HostCost()
        self._facts: deque[StepFacts] = deque()

    def add(self, request: Request) -> Sequence:
        """Queue a request; raises InputError where it can never be served."""
        sequence = self.scheduler.add(request)
        if self.journal:
            self.journal.write(Added(request))
        return sequence

    def abort(self, id: int) -> None:
        """Give a request up, in whatever state; nothing where it has ended."""
        if self.scheduler.abort(id) and self.journal:
            self.journal.write(Aborted(id))

    def step(self) -> bool:
        """Submit a step if there is one, take a result if one is due; False where there was nothing to do."""
        clock, scheduler = self.clock, self.scheduler
        began = clock.now_us
        plan = scheduler.schedule()
        if plan:
            clock.spend(self._host.us(plan))
            self.executor.submit(plan, clock.now_us)
            if self.journal:
                self.journal.plan(plan)
            kv = sum(plan.starts) + plan.tokens
            tables = scheduler.table_pages, scheduler.table_tokens
            host_us = clock.now_us - began
            self._facts.append(StepFacts(0.0, 0.0, 0.0, host_us, plan.rows, plan.tokens, kv, *tables))
        if not scheduler.in_flight:
            return False
        if not plan or len(scheduler.in_flight) >= self._depth:
            self._take()
        return True

    def _take(self) -> None:
        asked = self.clock.now_us
        result = self.executor.result()
        self.clock.wait_until(result.ended_us)
        began = max(asked, result.ended_us)
        emitted = self.scheduler.commit(result)
        if self.journal:
            self.journal.write(result)
        facts = self._facts.popleft()
        host_us = facts.host_us + self.clock.now_us - began
        self._observe(StepFacts(result.ended_us, result.us, result.idle_us, host_us, *facts[4:]), emitted)


def serve(engine: Engine, requests: Sized[Request], max_concurrency: int = 0) -> list[Sequence]:
    """Serve requests as they arrive, in the order of their arrival, until all have ended.

    Where `max_concurrency` is above 0, no more than so many are sent at once: others arrive when one has ended.
    """
    clock, under_way = engine.clock, engine.scheduler.sequences
    sequences: list[Sequence] = []
    most = max_concurrency or len(requests)
    while True:
        now = clock.now_us
        while len(sequences) < len(requests) and requests[len(sequences)].arrival_us <= now and len(under_way) < most:
            request = requests[len(sequences)]
            if max_concurrency:
                request = structs.replace(request, arrival_us=now)
            sequences.append(engine.add(request))
        if engine.step():
            continue
        if len(sequences) == len(requests):
            return sequences
        clock.wait_until(requests[len(sequences)].arrival_us)
