"""How long a step is predicted to take: its matrices by bucket, its attention by the lengths of its sequences."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from lab.inference.step import Part, parts_of
from lab.inference.step_input import PAGE, Layout
from lab.problems import Model
from lab.serving.step import Buckets, StepPlan
from sim.machine import Machine

CLOCK = "chain"  # what a launch costs among the others of a step
HOST_LINK = 55e9  # bytes/s of PCIe 5.0 x16: 63 GB/s of 128b/130b symbols less packet headers (PCI-SIG, 5.0, 4.2)
GRID = 1024  # tokens: lengths in the table are rounded up to a multiple


@dataclass(frozen=True)
class StepTimes:
    """A model on a machine, in the buckets that its steps are rounded up to."""

    model: Model
    machine: Machine
    buckets: Buckets

    def plan_us(self, plan: StepPlan) -> float:
        """Microseconds of a step, its pages' copies to and from the host among them."""
        us = self.swap_us(plan.moves) / 2
        if plan.rows:
            us += self.rows_us(plan.starts, plan.counts)
        return us

    def rows_us(self, starts: Sequence[int], counts: Sequence[int]) -> float:
        """Microseconds of a step of sequences with so many new tokens after so many that they had."""
        layout = self.buckets.of(len(counts), sum(counts))
        padding = [0] * (layout.rows - len(counts))
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        return self._at(layout).us([*counts, *padding], [*ends, *padding])

    def step_us(self, rows: int, tokens: int, decodes: int, decode_kv: int, pairs: int) -> float:
        """Microseconds, from a table, that a step of `decodes` rows of one token and one chunk at most needs.

        Lengths are rounded up to the table's, and rows to its bucket's, all of the mean length.
        """
        layout, chunk = self.buckets.of(rows, tokens), tokens - decodes
        length = _up(decode_kv / decodes, layout.capacity) if decodes else 0
        start = (pairs - chunk * (chunk + 1) // 2) / chunk if chunk else 0.0
        return self._at(layout).table_us(length, _up(start, layout.capacity - chunk), chunk)

    def recompute_us(self, tokens: int) -> float:
        """What it costs to compute so many tokens of a sequence anew, in steps that are full of it."""
        most, us = self.buckets.max_tokens, 0.0
        for start in range(0, tokens, most):
            chunk = min(most, tokens - start)
            us += self.step_us(1, chunk, 0, 0, chunk * start + chunk * (chunk + 1) // 2)
        return us

    def swap_us(self, pages: int) -> float:
        """What it costs to copy so many pages to the host and back."""
        return 2e6 * pages * PAGE * self.model.kv_bytes_per_token / HOST_LINK

    def _at(self, layout: Layout) -> "_Bucket":
        return _bucket(self.model, self.machine, layout)


def _up(length: float, most: int) -> int:
    return min(most, -int(-length // GRID) * GRID)


@lru_cache(maxsize=1024)
def _bucket(model: Model, machine: Machine, layout: Layout) -> "_Bucket":
    # Of a bucket's own plan: the lengths are taken for each step anew.
    new = layout.tokens - layout.rows + 1
    parts = parts_of(model, [(1, layout.capacity)] * (layout.rows - 1) + [(new, layout.capacity)], machine)
    attention = next(part for part in parts if part.name == "attention")
    matrices = sum(part.times * (part.predicted_us(CLOCK) or 0.0) for part in parts if part is not attention)
    return _Bucket(layout, matrices, attention)


class _Bucket:
    """One layout: microseconds of all but attention, and attention as a problem of given lengths."""

    def __init__(self, layout: Layout, matrices_us: float, attention: Part) -> None:
        self._layout, self._matrices_us, self._attention = layout, matrices_us, attention
        self._problem: Any = attention.problem
        self.table_us = lru_cache(maxsize=4096)(self._table_us)

    def us(self, q_lens: Sequence[int], kv_lens: Sequence[int]) -> float:
        """Microseconds of a step of sequences with these new and all tokens, 0 for rows that fill the bucket up."""
        q_len = max(self._problem.q_len, *q_lens)
        problem = replace(self._problem, q_len=q_len, q_lens=tuple(q_lens), kv_lens=tuple(kv_lens))
        return self._matrices_us + self._attention.times * (
            self._attention._replace(problem=problem).predicted_us(CLOCK) or 0.0
        )

    def _table_us(self, length: int, start: int, chunk: int) -> float:
        if not chunk:
            return self.us([1] * self._layout.rows, [length] * self._layout.rows)
        others = min(self._layout.rows - 1, self._layout.tokens - chunk)
        rest = [0] * (self._layout.rows - 1 - others)
        decode = [1 if length else 0] * others
        return self.us([*decode, chunk, *rest], [*[length] * others, start + chunk, *rest])
