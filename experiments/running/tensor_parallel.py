"""A decode step on two GPUs: each rank's launches and its sums in a graph of its own, both replayed together."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lab import catalog
from lab.execute import capture
from lab.inference.chip import Chip
from lab.inference.layers import Forward
from lab.inference.parallel_step import BRANCH
from lab.inference.step import Step, StepCache
from lab.inference.step_input import PAGE, Chunk, Layout
from lab.inference.step_weights import StepWeights, random
from lab.problems import Model
from lab.problems.all_reduce import RANKS, AllReduce
from lab.serving.disaggregation.parallel import share_of

SUM = "all_reduce_one_shot"
CONTEXT = 2048  # tokens


class TwoRanks:
    """The step of one sequence of `CONTEXT` tokens, random weights; `replay` runs it on both GPUs' streams.

    Both devices may be the same one, whose SMs the ranks then share.
    """

    def __init__(self, model: Model, chips: tuple[Chip, Chip]) -> None:
        from lab.execute.device import DeviceBound

        self._chips, share = chips, share_of(model, RANKS)
        problem = AllReduce(1, model.d, model.unit)
        kernel, machine = catalog.get(SUM), chips[0].machine
        schedule = kernel.best_guess(problem, machine)
        launches = [kernel.module.rank_launch(problem, schedule, rank) for rank in range(RANKS)]  # type: ignore[attr-defined]
        self._places = [chip.apart() for chip in chips]
        self.steps: list[Step] = []
        sums: list[Any] = []
        same: dict[str, Any] = {}
        for rank, (chip, place) in enumerate(zip(chips, self._places, strict=True)):
            with place:
                weights = _weights(share, chip, rank, same)
                self.steps.append(_step(weights, chip))
                summed = chip.xp.zeros((1, 1, model.d), np.uint16)
                given = {"x": self.steps[rank].arrays[BRANCH], "y": summed}
                sums.append(DeviceBound((launches[rank],), machine, chip.device or 0).bind(given))
        for rank, bound in enumerate(sums):  # each takes what is the other's from the other
            bound.bind({a.name: sums[1 - rank].arrays[a.name] for a in launches[rank].arrays if a.peer})
        self._graphs = []
        for step, bound, place in zip(self.steps, sums, self._places, strict=True):
            with place:
                self._graphs.append(capture(*_with_sums(step, bound)))

    def replay(self) -> None:
        """Enqueue the step on both."""
        for place, graph in zip(self._places, self._graphs, strict=True):
            with place:
                graph.replay()

    def timed(self, timed: Callable[..., float]) -> float:
        """Microseconds of a step by the first GPU's events: what `timed` makes of a call and its stream."""
        return self._on_first(timed, self.replay)

    def share(self, timed: Callable[..., float]) -> float:
        """Likewise of the first rank's launches by themselves, without sums."""
        return self._on_first(timed, self.steps[0].replay)

    def _on_first(self, timed: Callable[..., float], run: Callable[[], object]) -> float:
        import cupy

        with self._places[0]:
            return timed(run, cupy.cuda.get_current_stream())

    def logits(self) -> Iterator[Any]:
        """What each rank found."""
        for chip, place, step in zip(self._chips, self._places, self.steps, strict=True):
            with place:
                yield chip.read(step.arrays["logits"])


def _weights(share: Model, chip: Chip, rank: int, same: dict[str, Any]) -> StepWeights:
    """A rank's own matrices, and what all ranks have alike."""
    weights = random(share, 2 * CONTEXT, chip, seed=rank)
    for name, array in weights.arrays.items():
        if name in ("embedding", "head.w"):
            if rank == 0:
                same[name] = chip.read(array)
            else:
                chip.write(array, same[name])
    return weights


def _step(weights: StepWeights, chip: Chip) -> Step:
    pages = -(-CONTEXT // PAGE)
    forward = Forward(weights.config, weights.matrices, 1 + pages, joins=False)
    step = Step(weights, StepCache(forward, chip), forward, Layout(1, 1, pages), chip)
    step.input.fill([Chunk([1], CONTEXT - 1, range(1, 1 + pages))])
    chip.write(step.block, step.input.block)
    return step


def _with_sums(step: Step, summing: Any) -> list[Any]:
    """The step's launches with a sum behind each branch, which is what follows in the branch's place."""
    found = []
    for call, bound in zip(step.calls, step.bound, strict=True):
        taken = {
            operand: summing.arrays["y"] for operand, name in call.arrays.items() if name == BRANCH and operand != "y"
        }
        found.append(bound.bind(taken) if taken else bound)
        if call.arrays.get("y") == BRANCH:
            found.append(summing)
    return found
