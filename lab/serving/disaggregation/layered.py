"""Steps of prompts that push each layer's pages behind its own computation, so that the last one's alone come late."""

from collections.abc import Iterator, Mapping
from typing import Any

from lab.inference.step import Step
from lab.inference.step_input import NULL_PAGE, PAGE
from lab.serving.disaggregation.handover import Take
from lab.serving.disaggregation.pushing import Pusher
from lab.serving.on_chip import ChipExecutor
from lab.serving.request import Sequence
from lab.serving.step import StepPlan


class LayeredExecutor(ChipExecutor):
    """Pushes what steps write, page by page of a layer, before the next layer is computed.

    `push_for` says by what, and where to; steps are then launched one kernel after another, without a graph.
    """

    _pusher: Pusher | None = None
    _taken: Mapping[int, Take]

    def push_for(self, pusher: Pusher, taken: Mapping[int, Take]) -> None:
        """From now on push what is computed for these requests."""
        self._pusher, self._taken = pusher, taken
        self._marks: dict[int, Any] = {}  # behind the newest push of each request; None where it is over
        self._ends: dict[int, int] = {}  # tokens whose pages have been pushed, of prompts under way

    def pushed(self, id: int) -> tuple[bool, Any]:
        """Whether pages of a request were pushed, of which nothing more is to be done, and the mark behind them."""
        self._ends.pop(id, None)
        return id in self._marks, self._marks.pop(id, None)

    def _compute(self, plan: StepPlan, step: Step) -> None:
        pushes = [(s.request.id, found) for i, s in enumerate(plan.sequences) if (found := self._pushes(plan, i, s))]
        if not pushes:
            super()._compute(plan, step)
            return
        layer = 0
        for call, bound in zip(step.calls, step.bound, strict=True):
            bound.run()
            if call.arrays.get("cache") == f"layers.{layer}.cache" and "cache" in call.problem.outputs:
                for id, found in pushes:
                    self._marks[id] = next(found)
                layer += 1

    def _pushes(self, plan: StepPlan, row: int, sequence: Sequence) -> Iterator[Any] | None:
        """The pushes of what a row of a step writes, and of what was found computed before it."""
        id, start, end = sequence.request.id, plan.starts[row], plan.starts[row] + plan.counts[row]
        if self._pusher is None or id not in self._taken:
            return None
        offer, receiver = self._taken[id]
        if offer.request.max_tokens == 1:
            return None  # it ends with its first token
        first = start // PAGE if self._ends.get(id) == start else 0
        self._ends[id], pages = end, slice(first, -(-end // PAGE))
        flag = offer.pages[0] if plan.samples[row] else NULL_PAGE
        return self._pusher.by_layers(sequence.pages[pages], receiver, offer.pages[pages], offer.epoch, flag)
