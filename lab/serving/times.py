"""How long a step is predicted to take: its matrices by bucket, its attention by the lengths of its sequences."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from lab.inference.step import Part, parts_in, with_lengths
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

    def prepare(self) -> None:
        """Work every bucket out before it is needed, so that a loop by the wall's clock does not wait for it."""
        for layout in self.buckets.all():
            self._at(layout)

    def plan_us(self, plan: StepPlan) -> float:
        """Microseconds of a step, its pages' copies to and from the host among them."""
        us = self.swap_us(plan.moves) / 2
        if plan.rows:
            us += self.rows_us(plan.starts, plan.counts)
        return us

    def rows_us(self, starts: Sequence[int], counts: Sequence[int]) -> float:
        """Microseconds of a step of sequences with so many new tokens after so many that they had, one token first."""
        singles = sum(count == 1 for count in counts)
        layout = self.buckets.of(singles, len(counts) - singles, sum(counts))
        padding = [0] * (layout.rows - layout.chunks - singles if layout.chunks else 0)
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        q_lens = [*counts[:singles], *padding, *counts[singles:]]
        return self._at(layout).us(q_lens, [*ends[:singles], *padding, *ends[singles:]])

    def step_us(self, singles: int, tokens: int, single_kv: int, chunk_start: int) -> float:
        """Microseconds, from a table, that a step needs at most.

        It has so many rows of one token, which attend to `single_kv` together, and one chunk after `chunk_start` tokens
        at most. Lengths are rounded up to the table's, rows to the bucket's, all of the mean length.
        """
        chunk = tokens - singles
        layout = self.buckets.of(singles, bool(chunk), tokens)
        length = _up(single_kv / singles, layout.capacity) if singles else 0
        return self._at(layout).table_us(length, _up(chunk_start, layout.capacity - chunk), chunk)

    def recompute_us(self, tokens: int) -> float:
        """What it costs to compute so many tokens of a sequence anew, in steps that are full of it."""
        most, us = self.buckets.max_tokens, 0.0
        for start in range(0, tokens, most):
            chunk = min(most, tokens - start)
            us += self.step_us(0, chunk, 0, start)
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
    return _Bucket(layout, parts_in(model, layout, (), (), machine))


class _Bucket:
    """One layout: microseconds of all but attention, and attention as problems of given lengths."""

    def __init__(self, layout: Layout, parts: Sequence[Part]) -> None:
        self._layout = layout
        self._attentions = [part for part in parts if part.name == "attention"]
        others = [part for part in parts if part.name != "attention"]
        self._others_us = sum(part.times * (part.predicted_us(CLOCK) or 0.0) for part in others)
        self.table_us = lru_cache(maxsize=4096)(self._table_us)

    def us(self, q_lens: Sequence[int], kv_lens: Sequence[int]) -> float:
        """Microseconds of a step whose rows have these new and all tokens, 0 for rows that fill the bucket up."""
        us = self._others_us
        for part in self._attentions:
            problem = with_lengths(part.problem, self._layout, q_lens, kv_lens)
            us += part.times * (part._replace(problem=problem).predicted_us(CLOCK) or 0.0)
        return us

    def _table_us(self, length: int, start: int, chunk: int) -> float:
        layout = self._layout
        others = layout.rows - layout.chunks if layout.chunks else layout.rows - bool(chunk)
        new = [1 if length else 0] * min(others, layout.tokens - chunk)
        rest = [0] * (others - len(new))
        return self.us([*new, *rest, chunk], [*[length] * len(new), *rest, start + chunk])
