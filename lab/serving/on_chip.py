"""Steps on a chip, simulated or real: a captured graph a bucket, sampled tokens stay there, results are read behind."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

from lab.inference.chip import Chip
from lab.inference.layers import Forward
from lab.inference.step import AHEAD, Results, Step, StepCache, require_kernels
from lab.inference.step_input import Layout, StepInput
from lab.inference.step_weights import StepWeights
from lab.serving.clock import Clock
from lab.serving.executor import Timed, Timeline
from lab.serving.scheduler import Scheduler
from lab.serving.step import Copy, Packed, StepPlan, StepResult, Take, pack
from sim.errors import InputError


class Stopwatch(Protocol):
    """Times the steps of a chip, in their order."""

    def start(self, plan: StepPlan, now_us: float) -> None:
        """The kernels of a step are enqueued from here on."""

    def stop(self) -> None:
        """All of them have been enqueued."""

    def wait(self) -> Timed:
        """The times of the oldest step that was not waited for, when it is over."""


class PredictedStopwatch:
    """The simulated chip's: a step is over when it was enqueued, and takes what a real one is predicted to."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._timed: deque[Timed] = deque()

    def start(self, plan: StepPlan, now_us: float) -> None:
        self._timed.append(self._timeline.run(plan, now_us))

    def stop(self) -> None:
        """Its end is known from the start."""

    def wait(self) -> Timed:
        return self._timed.popleft()


class MarkStopwatch:
    """A GPU's, by marks in its stream; the loop's clock is the wall's. What lies between two graphs is idle."""

    def __init__(self, chip: Chip, clock: Clock) -> None:
        # The end of the step before is looked at too.
        self._marks = deque([(chip.mark(), chip.mark()) for _ in range(AHEAD + 1)])
        self._running: deque[tuple[Any, Any]] = deque()
        self._before: Any = None
        self._clock = clock

    def start(self, plan: StepPlan, now_us: float) -> None:  # noqa: ARG002 (its own marks say when)
        self._running.append(self._marks[0])
        self._marks.rotate(-1)
        self._running[-1][0].set()

    def stop(self) -> None:
        self._running[-1][1].set()

    def wait(self) -> Timed:
        start, end = self._running.popleft()
        end.wait()
        us = end.us_after(start)
        idle_us = start.us_after(self._before) if self._before else 0.0
        self._before = end
        return Timed(self._clock.now_us, us, idle_us)


class _Way(NamedTuple):
    """A bucket's way to the chip and back: a block of the host and its copy, ready to go, and where results come.

    `on` is all of a step in one graph, the copies too, where each token is what the run before has sampled in its row;
    none where steps have chunks.
    """

    given: StepInput
    send: Callable[[], None]
    results: Results
    on: Callable[[], object] | None


class ChipExecutor:
    """Runs a scheduler's plans on a chip, with a cache of as many pages as its policy has: `cache`, or one of its own.

    Raises InputError where a layer has no kernel, and where the cache's pages are not the kernels'.
    """

    def __init__(
        self,
        weights: StepWeights,
        scheduler: Scheduler,
        chip: Chip,
        stopwatch: Stopwatch,
        cache: StepCache | None = None,
    ) -> None:
        policy = scheduler.policy
        self._weights, self._chip, self._stopwatch = weights, chip, stopwatch
        self._slots, self._buckets = scheduler.slots, policy.buckets
        self._forward = Forward(weights.config, weights.matrices, policy.pages)
        require_kernels(self._forward, chip.machine)
        self._cache = cache or StepCache(self._forward, chip)
        self._pools = [array for name, array in self._cache.arrays.items() if name.endswith(".cache")]
        shape = (policy.host_pages, *self._pools[0].shape[1:])
        hosts = self._pools if policy.host_pages > 1 else []
        self._host = [chip.host(shape, np.dtype(pool.dtype)) for pool in hosts]
        self._steps: dict[Layout, tuple[Step, list[_Way]]] = {}
        self.late = 0  # buckets that were captured when a step needed them
        words = max(layout.words for layout in policy.buckets.all())
        self._blocks = [chip.host((words,), np.dtype(np.int32)) for _ in range(AHEAD)]
        self._turn = 0  # of the blocks
        self._there: list[Packed | None] = [None] * AHEAD  # in each block
        self._in_flight: deque[tuple[StepPlan, slice | list[int], Results | None]] = deque()
        self._before: Packed | None = None  # the newest step, where it has rows
        self._newest: Step | None = None

    def prepare(self, layouts: Iterable[Layout]) -> None:
        """Compile and capture buckets before they are needed."""
        for layout in layouts:
            self._step(layout)

    @property
    def logits(self) -> Any:
        """The scores of the newest step's rows, on the chip; raises InputError where there was none."""
        if self._newest is None:
            raise InputError("no step has run yet")
        return self._newest.arrays["logits"]

    def submit(self, plan: StepPlan, now_us: float) -> None:
        layout = self._buckets.of(plan.singles or not plan.chunks, plan.chunks, plan.tokens)
        self._move(plan)
        self.late += layout not in self._steps
        step, ways = self._step(layout)
        if plan.rows:
            self._run(plan, step, ways[self._turn], now_us)
        else:
            self._before = None
            self._stopwatch.start(plan, now_us)
            self._in_flight.append((plan, [], None))
        self._stopwatch.stop()

    def result(self) -> StepResult:
        plan, rows, results = self._in_flight.popleft()
        timed = self._stopwatch.wait()  # the results were sent before its mark
        if results is None:
            return StepResult(plan.step, [], *timed)
        scores = results.scores[rows]
        if not np.isfinite(scores).all():
            raise InputError("the model gives scores that are not finite")
        return StepResult(plan.step, results.tokens[rows].tolist(), *timed, scores.tolist())

    def _run(self, plan: StepPlan, step: Step, way: _Way, now_us: float) -> None:
        """Bring a plan's block to the chip, the tokens that the step before samples to their places in it, and run."""
        turn = self._turn
        self._turn = (turn + 1) % AHEAD
        packed, takes = pack(plan, self._slots, way.given, self._before, self._there[turn])
        self._there[turn] = self._before = packed
        self._in_flight.append((plan, packed.rows, way.results))
        if way.on and step is self._newest and takes == [Take(0, 0, plan.rows)]:
            self._stopwatch.start(plan, now_us)
            way.on()
            return
        way.send()
        for take in takes:
            self._take(step, take)
        self._stopwatch.start(plan, now_us)
        self._compute(plan, step)
        way.results.copy()
        self._newest = step

    def _compute(self, plan: StepPlan, step: Step) -> None:  # noqa: ARG002 (who does more by layers asks for it)
        """Enqueue what a step computes."""
        step.replay()

    def _take(self, step: Step, take: Take) -> None:
        """Copy what the newest step samples."""
        assert self._newest
        at, row, number = take
        sampled = self._newest.arrays["token"][row : row + number]
        self._chip.copy(step.arrays["tokens"][at : at + number], sampled)

    def _step(self, layout: Layout) -> tuple[Step, list[_Way]]:
        if layout not in self._steps:
            step = Step(self._weights, self._cache, self._forward, layout, self._chip)
            self._steps[layout] = step, [self._way(step, block[: layout.words]) for block in self._blocks]
        return self._steps[layout]

    def _way(self, step: Step, block: Any) -> _Way:
        """That of a bucket through one block of the host."""
        layout, copying = step.layout, self._chip.copying
        given, results = StepInput(layout, block), Results(step)
        send = copying(step.block, given.block)
        if layout.tokens > layout.rows:
            return _Way(given, send, results, None)
        take = copying(step.arrays["tokens"], step.arrays["token"])
        return _Way(given, send, results, step.within([send, take], [results.copy]))

    def _move(self, plan: StepPlan) -> None:
        """Copy pages: out to the host first, whose pages may be taken again."""
        for pool in self._pools:
            self._copy_pages(plan.copies, pool, pool)
        for pool, host in zip(self._pools, self._host, strict=False):
            self._copy_pages(plan.swapped_out, pool, host)
            self._copy_pages(plan.swapped_in, host, pool)

    def _copy_pages(self, copies: list[Copy], source: Any, target: Any) -> None:
        for one in copies:
            self._chip.copy(target[one.target], source[one.source])
