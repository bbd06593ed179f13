"""What computes steps, behind one protocol; here those that only know how long a step takes."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

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

    def plan_us(self, plan: StepPlan) -> float: ...


def scripted(vocab: int) -> TokenOf:
    """Tokens that follow from nothing but the request's number and their place, so that they are what they were."""

    def token(sequence: Sequence, place: int) -> int:
        return (sequence.request.id * 7919 + place * 104_729) % vocab

    return token


class Timeline:
    """When a chip that takes one step after another is at which; `gap_us` lies between two steps."""

    def __init__(self, gap_us: float = 0.0) -> None:
        self._free_us, self._gap_us = 0.0, gap_us

    def run(self, now_us: float, us: float) -> tuple[float, float]:
        """(start, end) of a step that takes so long and is submitted now."""
        start = max(now_us, self._free_us) + self._gap_us
        self._free_us = start + us
        return start, self._free_us


class PredictedExecutor:
    """Times alone, of any model: tokens are scripted, nothing is computed."""

    def __init__(self, pace: Pace, token_of: TokenOf, gap_us: float = 0.0) -> None:
        self._pace, self._token_of = pace, token_of
        self._timeline = Timeline(gap_us)
        self._results: deque[StepResult] = deque()

    def submit(self, plan: StepPlan, now_us: float) -> None:
        start, end = self._timeline.run(now_us, self._pace.plan_us(plan))
        rows = zip(plan.sequences, plan.starts, plan.counts, plan.samples, strict=True)
        tokens = [
            self._token_of(sequence, begin + count - len(sequence.request.prompt)) if samples else 0
            for sequence, begin, count, samples in rows
        ]
        self._results.append(StepResult(plan.step, tokens, start, end))

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
