"""What computes steps, behind one protocol; here those that only know how long a step takes."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from lab.serving.power import Heat, Work
from lab.serving.request import Sequence
from lab.serving.step import StepPlan, StepResult
from sim.errors import InputError

TokenOf = Callable[[Sequence, int], int]  # the token of a sequence at a place after its prompt


class Executor(Protocol):
    """A chip that takes steps in order. Steps read and write pages in that order, whenever their results are taken."""

    def submit(self, plan: StepPlan, now_us: float) -> None:
        """Let a step begin once those before it have ended; returns at once."""

    def result(self) -> StepResult:
        """The result of the oldest step submitted, when there is one to wait for."""


class Pace(Protocol):
    """How long steps take."""

    def plan_us(self, plan: StepPlan, idle_us: float) -> float:
        """Microseconds of the next step, before which the chip had nothing to do for so long."""


class Works(Protocol):
    """What is known of a model's steps on a machine; `lab.serving.times.StepTimes` predicts it."""

    def plan(self, plan: StepPlan) -> Work:
        """A step, without its pages' copies to and from the host."""

    def heat(self) -> Heat:
        """The machine's power, at rest."""

    def swap_us(self, pages: int) -> float:
        """What it costs to copy so many pages to the host and back."""


class Powered:
    """Predicted steps one after another, on a card that gets warm."""

    def __init__(self, works: Works) -> None:
        self._works, self._heat = works, works.heat()

    def plan_us(self, plan: StepPlan, idle_us: float) -> float:
        """Microseconds of the next step, its pages' copies to and from the host among them."""
        self._heat.rest(idle_us + self._works.swap_us(plan.moves) / 2)
        return self._heat.run(self._works.plan(plan)) + self._works.swap_us(plan.moves) / 2


def scripted(vocab: int) -> TokenOf:
    """Tokens that follow from nothing but the request's number and their place, so that they are what they were."""

    def token(sequence: Sequence, place: int) -> int:
        return (sequence.request.id * 7919 + place * 104_729) % vocab

    return token


class Timed(NamedTuple):
    """When a step ended by the loop's clock, how long it took, and how long its chip had had nothing to do before."""

    ended_us: float
    us: float
    idle_us: float


class Timeline:
    """A chip that takes one step after another, each `gap_us` after the last or after it was submitted."""

    def __init__(self, pace: Pace, gap_us: float = 0.0) -> None:
        self._pace, self._free_us, self._gap_us = pace, 0.0, gap_us

    def run(self, plan: StepPlan, now_us: float) -> Timed:
        """The times of a step that is submitted now."""
        start = max(now_us, self._free_us) + self._gap_us
        idle = start - self._free_us
        us = self._pace.plan_us(plan, idle)
        self._free_us = start + us
        return Timed(start + us, us, idle)


class PredictedExecutor:
    """Times alone, of any model: tokens are scripted, nothing is computed."""

    def __init__(self, pace: Pace, token_of: TokenOf, gap_us: float = 0.0) -> None:
        self._timeline, self._token_of = Timeline(pace, gap_us), token_of
        self._results: deque[StepResult] = deque()

    def submit(self, plan: StepPlan, now_us: float) -> None:
        timed = self._timeline.run(plan, now_us)
        rows = zip(plan.sequences, plan.starts, plan.counts, plan.samples, strict=True)
        tokens = [
            self._token_of(sequence, begin + count - len(sequence.request.prompt)) if samples else 0
            for sequence, begin, count, samples in rows
        ]
        self._results.append(StepResult(plan.step, tokens, *timed))

    def result(self) -> StepResult:
        return self._results.popleft()


class ReplayedExecutor:
    """The results of a journal, one after another; raises InputError where it ends or the step is another one."""

    def __init__(self, results: Iterator[StepResult]) -> None:
        self._results = results
        self._steps: deque[int] = deque()

    def submit(self, plan: StepPlan, now_us: float) -> None:  # noqa: ARG002 (its time was written down)
        self._steps.append(plan.step)

    def result(self) -> StepResult:
        step, found = self._steps.popleft(), next(self._results, None)
        if found is None or found.step != step:
            raise InputError(f"the journal has no result of step {step} here")
        return found
