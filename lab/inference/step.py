"""A step on a chip: its calls planned and bound once, captured into one graph, run as often as there is input."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, reduce
from operator import add
from typing import Any, NamedTuple

import numpy as np

from lab import catalog, tuned
from lab.choice import best_guesses, choose, is_solvable
from lab.execute import Copy, Plan, capture, compiling
from lab.inference.chip import Chip
from lab.inference.layers import Call, Forward
from lab.inference.step_input import PAGE, Layout, StepInput
from lab.inference.step_weights import StepWeights, config_of, matrices_of
from lab.problems import Attention, Model, Problem
from lab.verify import scratch
from sim.counts import Counts
from sim.errors import InputError
from sim.machine import Machine

FEW_TOKENS = 16  # of a sequence: attention of a decode step
# Of attention, bytes: beyond these an SM has 28 KB of L1, after it too, and GEMVs behind it were measured to take 1.4
# times as long there.
MOST_SHARED = 195 * 1024
LEAST_STAGES = 2
AHEAD = 2  # runs of a step whose results the host has not seen yet, at most


class StepCache:
    """Keys and values of all layers in `pool` pages each, the null page among them; `layers` are arrays for them."""

    def __init__(self, forward: Forward, chip: Chip, layers: Sequence[Any] = ()) -> None:
        operand, c = forward.cache(), forward.config
        found = layers or [chip.xp.zeros(operand.shape, operand.storage) for _ in range(c.layers)]
        self.arrays: dict[str, Any] = {f"layers.{i}.cache": array for i, array in enumerate(found)}
        if forward.kv == "fp8":
            self.arrays |= {name: chip.xp.ones(c.kv_heads, np.float32) for name in ("k_scale", "v_scale")}


class Step:
    """All steps of one bucket. Weights and cache are shared with other buckets; one step runs at a time.

    `dependent` launches may begin before the one ahead has ended. Raises InputError where a layer has no kernel.
    """

    def __init__(
        self,
        weights: StepWeights,
        cache: StepCache,
        forward: Forward,
        layout: Layout,
        chip: Chip,
        dependent: bool = True,
    ) -> None:
        self.layout, self.chip = layout, chip
        self.input = StepInput(layout)
        self.calls: list[Call] = list(forward.calls(layout))
        self.plans = {p: planned(p, chip.machine) for p in dict.fromkeys(call.problem for call in self.calls)}
        if chip.device is not None:
            self.plans = {p: compiling(found) for p, found in self.plans.items()}
        if not dependent:
            self.plans = {p: _plain(found) for p, found in self.plans.items()}
        self.block = chip.xp.zeros(layout.words, np.int32)
        buffers = {name: chip.xp.zeros(o.shape, o.storage) for name, o in forward.buffers(layout).items()}
        # Both results of a row are read at once: they lie in one array, each at a multiple of 16 bytes.
        self.results = chip.xp.zeros(-(-layout.rows // 4) * 4 + layout.rows, np.int32)
        buffers["token"] = self.results[: layout.rows]
        buffers["log_probability"] = self.results[-layout.rows :].view(np.float32)
        self.arrays = {**weights.arrays, **cache.arrays, **layout.views(self.block), **buffers}
        # Launches of one plan follow one another and leave their workspaces as they were: all have the same.
        spaces = {
            p: {name: chip.xp.zeros(a.shape, a.storage) for name, a in scratch(found.launches).items()}
            for p, found in self.plans.items()
        }
        self.bound = [
            self.plans[problem].bind(
                {**spaces[problem], **{operand: self.arrays[name] for operand, name in arrays.items()}}, chip.device
            )
            for problem, arrays in self.calls
        ]
        self._graph = capture(*self.bound)
        self._returns = deque(Results(self) for _ in range(AHEAD))
        self._copies: dict[Step | StepInput, Callable[[], None]] = {}

    def run(self, after: "Step | None" = None, given: StepInput | None = None) -> Counts:
        """Enqueue the step that `input` describes: it leaves `results`, and in `arrays` logits.

        Its tokens are those of `input`, or of a step that is enqueued before it what that one draws, a token a row.
        An input that is `given` in place of the step's own is in `Chip.host` memory and stays until the step has begun.
        """
        if given is None:
            self.chip.write(self.block, self.input.block)
        else:
            self._copy(given, self.block, given.block)
        if after:
            self._copy(after, self.arrays["tokens"], after.arrays["token"])
        return self.replay()

    def replay(self) -> Counts:
        """Enqueue the step once more, with the input that it had last."""
        return self._graph.replay()

    def within(self, before: Sequence[Copy], after: Sequence[Copy]) -> Callable[[], Counts]:
        """Replays of the step between copies, all of it one graph of its own."""
        return capture(*self.bound, before=before, after=after).replay

    def _copy(self, whose: "Step | StepInput", to: Any, source: Any) -> None:
        """Copy what another step or an input has; each time the same, so that it is prepared once."""
        if whose not in self._copies:
            self._copies[whose] = self.chip.copying(to, source)
        self._copies[whose]()

    def send(self) -> "Results":
        """Have the host sent what the newest run draws, behind it; until `AHEAD` later ones are sent it lies there."""
        results = self._returns[0]
        self._returns.rotate()
        results.fetch()
        return results

    @property
    def launches(self) -> int:
        return sum(len(self.plans[problem].launches) for problem, _ in self.calls)

    def solved(self, q_lens: tuple[int, ...], kv_lens: tuple[int, ...]) -> list[tuple[Plan, Problem]]:
        """Each call's plan, and its problem where sequences have these lengths."""
        actual = {p: with_lengths(p, self.layout, q_lens, kv_lens) for p in self.plans}
        return [(self.plans[problem], actual[problem]) for problem, _ in self.calls]

    def theory(self, q_lens: tuple[int, ...], kv_lens: tuple[int, ...]) -> Counts:
        """Closed-form counts of a whole step of sequences with these lengths."""
        total = Counts.zero()
        for (found, problem), times in Counter(self.solved(q_lens, kv_lens)).items():
            one = found.kernel.module.theory(problem, found.schedule, found.machine)
            total = reduce(add, [one] * times, total)
        return total


class Results:
    """Where the host finds what a run of a step draws: each row's token, and in `scores` its log-probability.

    `copy` brings them there.
    """

    def __init__(self, step: Step) -> None:
        chip, rows = step.chip, step.layout.rows
        words = chip.host((len(step.results),), np.dtype(np.int32))
        self.tokens, self.scores = words[:rows], words[-rows:].view(np.float32)
        self.copy = chip.copying(words, step.results)
        self._mark = None if chip.device is None else chip.mark()

    def fetch(self) -> None:
        """Enqueue their copy, and a mark behind it."""
        self.copy()
        if self._mark:
            self._mark.set()

    def wait(self) -> "Results":
        """Themselves, when they are there; what is enqueued behind them may still run."""
        if self._mark:
            self._mark.wait()
        return self


def require_kernels(forward: Forward, machine: Machine) -> None:
    """Raise InputError where a call of a decode step is one that no kernel of the machine takes, and say why."""
    for problem in dict.fromkeys(call.problem for call in forward.calls(Layout(1, 1, 1))):
        if not is_solvable(problem, machine):
            kernels = [kernel for kernel in catalog.kernels() if isinstance(problem, kernel.solves.problem)]
            needs = {k.name: f"needs {k.solves.needs(problem)}" for k in kernels}
            reasons = [f"{k.name} {k.solves.refusal(problem) or needs[k.name]}" for k in kernels]
            where = f"{problem.kind} on the {machine.title}"
            raise InputError(f"a step of this model has no kernel for its {where}: {'; '.join(reasons)}")


@lru_cache(maxsize=2048)
def planned(problem: Problem, machine: Machine) -> Plan:
    """The plan for a chain of launches; where a few tokens attend, of those that overlap the ones ahead of them."""
    few = isinstance(problem, Attention) and problem.q_len <= FEW_TOKENS
    if few and not tuned.is_tuned(problem, machine, chain=True):
        guesses = [guess for guess in best_guesses(problem, machine) if guess.launches[0].dependent]
        if guesses:
            best = min(guesses, key=lambda guess: guess.us)
            return _leaving_l1(Plan(problem, machine, best.kernel, best.schedule, best.launches))
    return Plan(problem, machine, *choose(problem, machine, chain=True))


def _leaving_l1(found: Plan) -> Plan:
    """The plan, its rings no deeper than leaves an SM the L1 that the matrices behind have their loads under way in."""
    p, schedule = found.problem, found.schedule
    while found.launches[0].shared_bytes > MOST_SHARED and getattr(schedule, "stages", 0) > LEAST_STAGES:
        schedule = replace(schedule, stages=schedule.stages - 1)
        launches = found.kernel.launches(p, schedule, found.machine)
        found = replace(found, schedule=schedule, launches=launches)
    return found


class Part(NamedTuple):
    """A problem that a step solves so many `times`, with the plan for it, if any; `name` is its matrix's or its kind.

    The plan is of the bucket, the problem has its sequences' own lengths.
    """

    name: str
    times: int
    problem: Problem
    plan: Plan | None

    def predicted_us(self, clock: str) -> float | None:
        """Microseconds of one of them."""
        if self.plan is None:
            return None
        return self.plan.kernel.predicted_us(self.problem, self.plan.schedule, self.plan.machine, clock)


def parts_of(
    model: Model,
    rows: Sequence[tuple[int, int]],
    machine: Machine,
    choose: Callable[[Problem, Machine], Plan | None] = planned,
) -> list[Part]:
    """What a step of sequences, (new tokens, all tokens) each, consists of; nothing is loaded."""
    layout = Layout(len(rows), sum(q for q, _ in rows), -(-max(kv for _, kv in rows) // PAGE))
    return parts_in(model, layout, [q for q, _ in rows], [kv for _, kv in rows], machine, choose)


def parts_in(
    model: Model,
    layout: Layout,
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    machine: Machine,
    choose: Callable[[Problem, Machine], Plan | None] = planned,
) -> list[Part]:
    """Likewise, in a bucket whose rows have these lengths."""
    config = config_of(model, layout.capacity)
    pool = 1 + layout.pages * layout.rows
    forward = Forward(config, matrices_of(model), pool, model.kv, activations=model.unit)
    calls = list(forward.calls(layout))
    times = Counter(problem for problem, _ in calls)
    names = {problem: arrays["w"].split(".")[-2] if "w" in arrays else problem.kind for problem, arrays in calls}
    return [Part(names[p], times[p], with_lengths(p, layout, q_lens, kv_lens), choose(p, machine)) for p in times]


def step_us(model: Model, rows: Sequence[tuple[int, int]], machine: Machine, clock: str = "chain") -> float:
    """Microseconds that such a step is predicted to take; raises InputError where a part has no kernel."""
    return sum(part.times * (part.predicted_us(clock) or 0.0) for part in parts_of(model, rows, machine))


def with_lengths(problem: Problem, layout: Layout, q_lens: Sequence[int], kv_lens: Sequence[int]) -> Problem:
    """What a step asks with these lengths of the layout's rows; rows that are not told have none."""
    if not isinstance(problem, Attention):
        return problem
    first = next(first for first, rows, q_len in layout.parts if (rows, q_len) == (problem.batch, problem.q_len))
    told = (tuple(lens[first : first + problem.batch]) for lens in (q_lens, kv_lens))
    q, kv = (lens + (0,) * (problem.batch - len(lens)) for lens in told)
    return replace(problem, q_lens=q, kv_lens=kv)


def _plain(found: Plan) -> Plan:
    return replace(found, launches=tuple(replace(launch, dependent=False) for launch in found.launches))
