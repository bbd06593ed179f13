"""How long a step is predicted to take: its matrices by bucket, its attention by the lengths of its sequences."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lab.inference.step import Part, parts_in, with_lengths
from lab.inference.step_input import PAGE, Layout
from lab.problems import Model
from lab.serving.power import NO_WORK, Heat, Work
from lab.serving.step import CHUNKS, Buckets, StepPlan
from sim.machine import Machine

CLOCK = "chain"  # what a launch costs among the others of a step
HOST_LINK = 55e9  # bytes/s of PCIe 5.0 x16: 63 GB/s of 128b/130b symbols less packet headers (PCI-SIG, 5.0, 4.2)
GRID, STARTS = 1024, 512  # tokens: lengths in the table, and those before a chunk, are rounded up to a multiple
SINGLES = 32  # rows of one token: counts in the table are multiples, up for their own time, down for what they leave


@dataclass(frozen=True)
class StepTimes:
    """A model on a machine, in the buckets that its steps are rounded up to."""

    model: Model
    machine: Machine
    buckets: Buckets

    def prepare(self, table: bool = False) -> None:
        """Work every bucket out before it is needed, and the `table`, so that a loop by the wall never waits."""
        for layout in self.buckets.all():
            bucket = self._at(layout)
            # A budget has a page beside rows of one token; steps without chunks warm the chip that it is kept on.
            if table and (layout.rows <= CHUNKS or layout.tokens > PAGE or layout.tokens == layout.rows):
                bucket.fill()

    @property
    def worked_out(self) -> int:
        """Entries of the table that were worked out so far."""
        return sum(self._at(layout).worked_out for layout in self.buckets.all())

    def heat(self) -> Heat:
        """The machine's power, at rest."""
        return Heat.of(self.machine, self.model.unit)

    def plan(self, plan: StepPlan) -> Work:
        """A step, without its pages' copies to and from the host."""
        return self.rows(plan.starts, plan.counts) if plan.rows else NO_WORK

    def rows_us(self, starts: Sequence[int], counts: Sequence[int]) -> float:
        """Microseconds of a step of sequences with so many new tokens after so many that they had, one token first.

        The chip's clock is what its kernels were timed at.
        """
        return self.rows(starts, counts).us

    def rows(self, starts: Sequence[int], counts: Sequence[int]) -> Work:
        """Likewise all that it asks of the chip."""
        singles = sum(count == 1 for count in counts)
        layout = self.buckets.of(singles, len(counts) - singles, sum(counts))
        padding = [0] * (layout.rows - layout.chunks - singles if layout.chunks else 0)
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        q_lens = [*counts[:singles], *padding, *counts[singles:]]
        return self._at(layout).work(q_lens, [*ends[:singles], *padding, *ends[singles:]])

    def step(self, singles: int, tokens: int, single_kv: int, chunk_start: int) -> Work:
        """What, from a table, a step with a chunk needs at most, and one without about.

        It has so many rows of one token, which attend to `single_kv` together, and one chunk after `chunk_start` tokens
        at most. Lengths and rows are rounded up to the table's, tokens to the bucket's, all rows of the mean length.
        """
        layout = self.buckets.of(singles, tokens > singles, tokens)
        length = _up(single_kv / singles, GRID, layout.capacity) if singles else 0
        return self._at(layout).table(length, chunk_start, singles, tokens - singles)

    def recompute_us(self, tokens: int) -> float:
        """What it costs to compute so many tokens of a sequence anew, in steps that are full of it."""
        most, us = self.buckets.max_tokens, 0.0
        for start in range(0, tokens, most):
            chunk = min(most, tokens - start)
            us += self.step(0, chunk, 0, start).us
        return us

    def swap_us(self, pages: int) -> float:
        """What it costs to copy so many pages to the host and back."""
        return 2e6 * pages * PAGE * self.model.kv_bytes_per_token / HOST_LINK

    def _at(self, layout: Layout) -> "_Bucket":
        return _bucket(self.model, self.machine, layout)


def _up(length: float, step: int, most: int) -> int:
    return min(most, -int(-length // step) * step)


@lru_cache(maxsize=1024)
def _bucket(model: Model, machine: Machine, layout: Layout) -> "_Bucket":
    return _Bucket(layout, parts_in(model, layout, (), (), machine))


class _Bucket:
    """One layout: the work of all but attention, and attention as problems of given lengths."""

    def __init__(self, layout: Layout, parts: Sequence[Part]) -> None:
        self._layout = layout
        self._attentions = [part for part in parts if part.name == "attention"]
        others = _work(part for part in parts if part.name != "attention")
        self._others = others._replace(mixed=layout.tokens > layout.rows)
        self._rows = lru_cache(maxsize=4096)(self._equal_rows)

    def work(self, q_lens: Sequence[int], kv_lens: Sequence[int]) -> Work:
        """A step whose rows have these new and all tokens, 0 for rows that fill the bucket up."""
        return self._others.and_(self._attention(self._attentions, q_lens, kv_lens))

    def table(self, length: int, start: int, singles: int, chunk: int) -> Work:
        """A step at most: rows of one token and of a length of the table, if any, and a chunk, if any.

        A bucket that has one launch of attention for both is told what two take.
        """
        found, layout = self._others, self._layout
        apart = bool(layout.chunks) or not chunk
        if singles:
            rows = min(-(-singles // SINGLES) * SINGLES, layout.rows) if apart else layout.rows
            found = found.and_(self._rows(rows, length, 0, 0))
        if chunk:
            chunk = min(layout.tokens - (singles // SINGLES * SINGLES if apart else 0), layout.capacity)
            found = found.and_(self._rows(0, 0, _up(start, STARTS, layout.capacity - chunk), chunk))
        return found

    def fill(self) -> None:
        """Work out all of the table that a step can ask for."""
        layout = self._layout
        decodes = layout.tokens == layout.rows
        rows = layout.rows - (0 if decodes else layout.chunks or min(CHUNKS, layout.rows))
        for singles in {*range(0, rows + 1, SINGLES), rows}:
            for tokens in [*range(0, layout.capacity, STARTS), layout.capacity]:
                length = _up(tokens, GRID, layout.capacity)
                self.table(length, tokens, singles, 0 if decodes else layout.tokens - singles)

    @property
    def worked_out(self) -> int:
        """Entries of the table so far."""
        return self._rows.cache_info().misses

    def _equal_rows(self, rows: int, length: int, start: int, chunk: int) -> Work:
        """One launch of attention: of so many rows of one token and a length, or of a chunk."""
        first = self._layout.rows - self._layout.chunks if self._layout.chunks else self._layout.rows - bool(chunk)
        if chunk:
            return self._attention(self._attentions[-1:], [0] * first + [chunk], [0] * first + [start + chunk])
        return self._attention(self._attentions[:1], [1] * rows, [length] * rows)

    def _attention(self, parts: Sequence[Part], q_lens: Sequence[int], kv_lens: Sequence[int]) -> Work:
        lengths = ((part, with_lengths(part.problem, self._layout, q_lens, kv_lens)) for part in parts)
        return _work(part._replace(problem=problem) for part, problem in lengths)


def _work(parts: Iterable[Part]) -> Work:
    """What parts take together."""
    found = NO_WORK
    for part in parts:
        n, p = part.times, part.problem
        found = found.and_(Work(n * (part.predicted_us(CLOCK) or 0.0), n * p.flops, n * p.bytes["total"]))
    return found
