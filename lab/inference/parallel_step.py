"""A step of two ranks that share a model: each runs its own calls, and after each half of a layer they are summed."""

from collections.abc import Sequence
from typing import Any

from lab.execute import Bound, plan
from lab.inference.step import Step
from lab.problems.all_reduce import RANKS, AllReduce
from sim.errors import InputError

BRANCH = "branch"  # what `output` and `down` write, and the norm behind them adds to the stream


class ParallelStep:
    """Two ranks of one chip, in step: after `StepWeights.load(..., rank, ranks)` neither has more than its part.

    Raises InputError for another number of them, for steps of different layouts, and for such as join launches.
    """

    def __init__(self, ranks: Sequence[Step]) -> None:
        if len(ranks) != RANKS or ranks[0].layout != ranks[1].layout:
            raise InputError(f"a step is of {RANKS} ranks with one layout; there are {len(ranks)}")
        self.ranks = list(ranks)
        first, xp = ranks[0], ranks[0].chip.xp
        if BRANCH not in first.arrays:
            raise InputError("a rank's step joins no launches: make it of a Forward with joins=False")
        branch = first.arrays[BRANCH]
        form = next(c.problem.outputs["y"].format for c in first.calls if c.arrays.get("y") == BRANCH)
        self._x, self._y = (xp.zeros((RANKS, *branch.shape), branch.dtype) for _ in range(2))
        tokens, d = branch.shape
        problem = AllReduce(tokens, d, form)
        self._sum: Bound = plan(problem, first.chip.machine).bind({"x": self._x, "y": self._y}, first.chip.device)

    def run(self) -> list[Any]:
        """Run the step that each rank's `input` describes, which are alike; returns the logits of each."""
        for step in self.ranks:
            step.chip.write(step.block, step.input.block)
        for at, call in enumerate(self.ranks[0].calls):
            for step in self.ranks:
                step.bound[at].run()
            if call.arrays.get("y") == BRANCH:
                self._sum_up()
        return [step.arrays["logits"] for step in self.ranks]

    def _sum_up(self) -> None:
        for rank, step in enumerate(self.ranks):
            step.chip.copy(self._x[rank], step.arrays[BRANCH])
        self._sum.run()
        for rank, step in enumerate(self.ranks):
            step.chip.copy(step.arrays[BRANCH], self._y[rank])
