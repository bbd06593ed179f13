"""A step of a whole model on a machine: its parts and what runs them, how large it may get, where its ridge is."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lab.execute.plan import Plan
from lab.inference.step import Part, parts_of, planned
from lab.problems import Model, Problem
from lab.problems.model import DECODE
from lab.problems.protocol import MAX_DIMENSION
from sim.errors import InputError
from sim.machine import Machine
from sim.roofline import roofline

CLOCK = "chain"  # what a launch costs among the others of a step
MOST_ROWS, MOST_TOKENS = 2**12, 2**20  # of a step whose parts are listed: some kernels look at each of them


def step_plan(problem: Problem, machine: Machine) -> Plan | None:
    """How a step would run a problem; None where no kernel takes it."""
    try:
        return planned(problem, machine)
    except InputError:
        return None


@dataclass(frozen=True)
class ModelStep:
    """A model on a machine; `choose` finds the plan of a problem, or None where nothing runs it."""

    model: Model
    machine: Machine
    choose: Callable[[Problem, Machine], Plan | None] = step_plan

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """What the step consists of; nothing where the lab has no such step, or it is too large."""
        m = self.model
        if m.batch > MOST_ROWS or m.tokens > MOST_TOKENS:
            return ()
        try:
            return tuple(parts_of(m, [(m.tokens // m.batch, m.context)] * m.batch, self.machine, self.choose))
        except InputError:
            return ()

    @cached_property
    def part_us(self) -> tuple[float | None, ...]:
        """Microseconds of one of each part, its launch in a chain of others; None where it has no plan."""
        return tuple(part.predicted_us(CLOCK) for part in self.parts)

    @property
    def predicted_us(self) -> float | None:
        """Microseconds of all parts; None where one of them has no plan."""
        known = [part.times * us for part, us in zip(self.parts, self.part_us, strict=True) if us is not None]
        return sum(known) if known and len(known) == len(self.parts) else None

    @property
    def largest_batch(self) -> int:
        """The most sequences of this context that fit the HBM; 0 where not even one does."""
        return self._most("batch")

    @property
    def longest_context(self) -> int:
        """The most tokens that so many sequences can have within the HBM; 0 where there is no room for one."""
        return self._most("context")

    @property
    def ridge_batch(self) -> int | None:
        """The least batch whose compute bill is as large as its memory bill; None where the KV cache prevents it."""

        def met(batch: int) -> bool:
            at = replace(self.model, batch=batch)
            placed = roofline(at.flops, at.streamed_bytes, at.unit, self.machine)
            return placed.intensity >= placed.ridge

        batches = self._values("batch")
        least = bisect_left(batches, True, key=met)
        return batches[least] if least < len(batches) else None

    def as_dict(self, floor_us: float) -> dict[str, Any]:
        """What `lab explain model --json` has besides what it has of every problem; a step takes `floor_us` at best."""
        tokens, predicted_us = self.model.tokens, self.predicted_us
        return {
            "kernel": None,
            "schedule": None,
            "predicted_us": predicted_us,
            "predicted": None,
            "launches": self.model.launches,
            "tokens": tokens,
            "tokens_per_s": tokens / floor_us * 1e6,
            "predicted_tokens_per_s": predicted_us and tokens / predicted_us * 1e6,
            "largest_batch": self.largest_batch,
            "longest_context": self.longest_context,
            "ridge_batch": self.ridge_batch,
            "parts": [self._part(part, us) for part, us in zip(self.parts, self.part_us, strict=True)],
        }

    def _part(self, part: Part, us: float | None) -> dict[str, Any]:
        problem = part.problem
        size = problem.bytes
        placed = roofline(problem.flops, size["total"], problem.unit, self.machine)
        return {
            "part": part.name,
            "times": part.times,
            "problem": problem.as_dict(),
            "bytes": size,
            "share": part.times * (size["weights"] + size["kv"]) / self.model.streamed_bytes,
            "regime": placed.regime,
            "floor_us": placed.floor_us,
            "kernel": part.plan.kernel.name if part.plan else None,
            "predicted_us": us,
        }

    def _most(self, extent: str) -> int:
        def nbytes(value: int) -> int:
            return replace(self.model, **{extent: value}).bytes["total"]  # type: ignore[arg-type]

        return bisect_right(self._values(extent), self.machine.hbm_bytes, key=nbytes)

    def _values(self, extent: str) -> range:
        """What a model can have of batch or context, all else as it is."""
        m = self.model
        each = 1 if m.phase == DECODE else {"batch": m.context, "context": m.batch}[extent]
        return range(1, MAX_DIMENSION // each + 1)
