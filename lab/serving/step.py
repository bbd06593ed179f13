"""A step of the loop: what the scheduler decided, how a chip is told it, what came back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from lab.inference.step_input import NULL_PAGE, PAGE, Layout, StepInput
from lab.problems.sampling import SETTINGS
from lab.serving.power import NO_WORK, Work
from lab.serving.request import Sequence

CHUNKS = 8  # sequences of a step that have more than one token: attention looks at the tiles that they may have
_DECODE = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # rows of one token each
# Tokens of steps with chunks: edges of the tiles of a GEMM, mostly; some more where an 8B model's ITL budgets lie.
_MIXED_TOKENS = (32, 64, 128, 256, 512, 640, 768, 1024, 2048, 4096, 8192, 16384)
_MIXED_ROWS = (8, 64, 256, 1024)  # of one token, beside chunks
DRAW = 6  # the word of a row's settings that says which draw it is


class Note(NamedTuple):
    """A decision and its reason: admit (tokens found in the cache), fork (likewise), resume (pages brought back),
    recompute (tokens lost), swap (pages sent to the host), stall (pages lacking)."""

    what: str
    id: int
    amount: int


class Copy(NamedTuple):
    """A page's contents go from one to another; either may be a page of the host."""

    source: int
    target: int


@dataclass(slots=True)
class StepPlan:
    """Row i is `counts[i]` tokens of `sequences[i]` from token `starts[i]` on; `samples[i]` where they reach its end.

    The first `singles` rows have one token, the others more. Copies are made before the rows are computed: within the
    cache, to the host, back from it.
    """

    step: int
    sequences: list[Sequence] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    samples: list[bool] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    swapped_out: list[Copy] = field(default_factory=list)
    swapped_in: list[Copy] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    new_pages: list[int] = field(default_factory=list)
    tokens: int = 0
    singles: int = 0
    predicted_us: float = 0.0  # where an ITL budget was filled
    work: Work = NO_WORK  # known where there is an ITL budget

    @property
    def rows(self) -> int:
        return len(self.sequences)

    @property
    def chunks(self) -> int:
        """Rows of more than one token."""
        return len(self.sequences) - self.singles

    @property
    def moves(self) -> int:
        """Pages copied to or from the host."""
        return len(self.swapped_out) + len(self.swapped_in)

    def decision(self) -> "Decision":
        """All that was decided, as plain data."""
        ids = [sequence.request.id for sequence in self.sequences]
        copies = [
            [(one.source, one.target) for one in some] for some in (self.copies, self.swapped_out, self.swapped_in)
        ]
        return Decision(
            self.step, ids, list(self.starts), list(self.counts), list(self.new_pages), copies, list(self.notes)
        )


class Decision(Struct, frozen=True, tag="step", array_like=True):
    """A StepPlan as a journal keeps it."""

    step: int
    ids: list[int]
    starts: list[int]
    counts: list[int]
    new_pages: list[int]
    copies: list[list[tuple[int, int]]]
    notes: list[Note]


class StepResult(Struct, frozen=True, tag="result", array_like=True):
    """The token of each row, meaningless where none was sampled; when the step ended and how long it took its chip.

    `idle_us` is how long the chip had had nothing to do.
    """

    step: int
    tokens: list[int]
    ended_us: float
    us: float
    idle_us: float = 0.0
    log_probabilities: list[float] = []


@dataclass(frozen=True)
class Buckets:
    """The layouts that steps are rounded up to, a captured graph each: of rows of one token, and of mixed ones."""

    max_rows: int
    max_tokens: int
    pages: int  # of one sequence

    def of(self, singles: int, chunks: int, tokens: int) -> Layout:
        """The least bucket for so many rows of one token, so many of more, and so many tokens."""
        if not chunks:
            rows = _at_least(_DECODE, singles, self.max_rows)
            return Layout(rows, rows, self.pages)
        tokens = _at_least(_MIXED_TOKENS, tokens, self.max_tokens)
        if not singles:
            return Layout(min(CHUNKS, tokens - 1), tokens, self.pages)
        rows = _at_least(_MIXED_ROWS, singles, self.max_rows) + CHUNKS
        if rows < tokens:
            return Layout(rows, tokens, self.pages, CHUNKS)
        return Layout(min(tokens - 1, rows), tokens, self.pages)  # of small steps, which attend in one launch

    def edges(self) -> list[int]:
        """Token counts of mixed buckets, the largest first."""
        return [*sorted({self.max_tokens, *(n for n in _MIXED_TOKENS if n < self.max_tokens)}, reverse=True)]

    def all(self) -> list[Layout]:
        """Every bucket there is, the smallest first."""
        rows = (*(n for n in _DECODE if n < self.max_rows), self.max_rows)
        decode = [self.of(n, 0, n) for n in rows]
        fewest = (0, 1, *(n + 1 for n in _MIXED_ROWS if n < self.max_rows))  # rows of one token that need a bucket
        edges = reversed(self.edges())
        mixed = [self.of(singles, 1, tokens) for tokens in edges for singles in fewest if singles + 2 <= tokens]
        return list(dict.fromkeys([*decode, *mixed]))


def _at_least(edges: tuple[int, ...], value: int, most: int) -> int:
    return min(most, next((edge for edge in edges if edge >= value), most))


class Slots:
    """What packing needs of each running sequence, by its slot: block table, settings, tokens of its prompt."""

    def __init__(self, rows: int, pages: int) -> None:
        self.tables = np.zeros((rows, pages), np.int32)
        self.settings = np.zeros((rows, SETTINGS), np.int32)
        self.prompts = np.zeros(rows, np.int32)
        self._free = list(range(rows - 1, -1, -1))

    def seat(self, sequence: Sequence) -> None:
        """Give a sequence a slot."""
        slot = sequence.slot = self._free.pop()
        self.settings[slot] = sequence.request.settings.words()
        self.prompts[slot] = len(sequence.request.prompt)

    def leave(self, sequence: Sequence) -> None:
        """Take its slot back and clear it: no later table has a page of it."""
        self.tables[sequence.slot] = NULL_PAGE
        self._free.append(sequence.slot)
        sequence.slot = -1


class Take(NamedTuple):
    """The tokens `at` to `at` + `number` of a step are those that rows from `row` on of the step before sampled."""

    at: int
    row: int
    number: int


class Packed(NamedTuple):
    """A plan in a bucket: the row that each of its own is in, the slot of its sequence, and where its tokens end."""

    plan: StepPlan
    layout: Layout
    rows: slice | list[int]
    seats: NDArray[np.intp]
    ends: NDArray[np.int32]


def pack(
    plan: StepPlan, slots: Slots, into: StepInput, before: Packed | None, there: Packed | None = None
) -> "Written":
    """Write a plan into a bucket's block; what is not known yet comes from the plan `before`, which is ahead of it.

    Rows of more than one token are the last. Tokens that fill the bucket up go to the null page, rows that do have no
    token. Where the block holds what was packed as `there`, and no step since was of other sequences, only what each
    token moves is written.
    """
    fields, layout, tokens, singles = into.fields, into.layout, plan.tokens, plan.singles
    same = before is not None and not (plan.chunks or before.plan.chunks) and plan.sequences == before.plan.sequences
    if same and before:  # most steps
        seats, starts = before.seats, before.ends
    else:
        seats = np.array([sequence.slot for sequence in plan.sequences], np.intp)
        starts = np.array(plan.starts, np.int32)
    ids, takes = _tokens(plan, before, same)
    if there and there.seats is seats and there.layout == layout:  # seats are handed on from step to step alone
        packed = Packed(plan, layout, there.rows, seats, starts + 1)
        _follow(packed, there, slots, fields)
        if ids:
            fields["tokens"][:tokens] = ids
        return Written(packed, takes)
    into.block[:] = 0
    rows: slice | list[int] = slice(plan.rows)
    counts: NDArray[np.int32] | int = 1
    of, positions, last = seats, starts, np.arange(plan.rows, dtype=np.int32)
    if plan.chunks:
        first = layout.rows - layout.chunks if layout.chunks else singles
        rows = [*range(singles), *range(first, first + plan.chunks)]
        counts = np.array(plan.counts, np.int32)
        last = np.cumsum(counts, dtype=np.int32) - 1
        of = np.repeat(seats, counts)
        positions = np.arange(tokens, dtype=np.int32) + np.repeat(starts + counts - 1 - last, counts)
    ends = starts + counts
    pages = int(ends.max()) // PAGE + 1  # of the longest; the table has nothing beyond them
    if ids:
        fields["tokens"][:tokens] = ids
    fields["positions"][:tokens] = positions
    fields["slots"][:tokens] = slots.tables[of, positions // PAGE] * PAGE + positions % PAGE
    fields["slots"][tokens:] = NULL_PAGE * PAGE + np.arange(layout.tokens - tokens, dtype=np.int32) % PAGE
    fields["query_starts"][1:][rows] = counts
    np.cumsum(fields["query_starts"], out=fields["query_starts"])
    fields["lengths"][rows] = ends
    fields["block_table"][rows, :pages] = slots.tables[seats, :pages]
    fields["sample_rows"][rows] = last
    settings = slots.settings[seats]
    settings[:, DRAW] = np.maximum(ends - slots.prompts[seats], 0)
    fields["settings"][rows] = settings
    return Written(Packed(plan, layout, rows, seats, ends), takes)


def _follow(packed: Packed, there: Packed, slots: Slots, fields: Mapping[str, Any]) -> None:
    """Let a block of one token a row, of the same sequences, be that of a later step: all rows are as much longer."""
    ends, rows = packed.ends, packed.rows
    more = int(ends[0] - there.ends[0])
    for name in ("positions", "slots", "lengths"):
        fields[name][rows] += more
    positions = ends - 1
    (new,) = np.nonzero(positions % PAGE < more)  # rows that have got a page since
    if len(new):
        page, offset = np.divmod(positions[new], PAGE)
        pages = slots.tables[packed.seats[new], page]
        fields["slots"][new] = pages * PAGE + offset
        fields["block_table"][new, page] = pages
    fields["settings"][rows, DRAW] = np.maximum(ends - slots.prompts[packed.seats], 0)


class Written(NamedTuple):
    """What `pack` wrote, and the tokens that are to come from the step before."""

    packed: Packed
    takes: list[Take]


def _tokens(plan: StepPlan, before: Packed | None, same: bool) -> tuple[list[int], list[Take]]:
    """The tokens of all rows, 0 for those to be taken from the step before, and where those are; none if all are.

    `same` where both steps are of one token each of the same sequences.
    """
    rows: dict[int, int] = {}
    if before:
        last = before.plan
        if same and all(last.samples):
            if plan.starts[0] == len(plan.sequences[0].tokens):  # none of its results is known yet, else all are
                return [], [Take(0, 0, plan.rows)]
            return [sequence.tokens[-1] for sequence in plan.sequences], []
        places = np.arange(before.layout.rows)[before.rows].tolist()
        rows = {sequence.request.id: row for sequence, row in zip(last.sequences, places, strict=True)}
    ids: list[int] = []
    takes: list[Take] = []
    for sequence, start, count in zip(plan.sequences, plan.starts, plan.counts, strict=True):
        have = sequence.tokens
        if start + count <= len(have):
            if count == 1:
                ids.append(have[start])
            else:
                ids.extend(have[start : start + count])
            continue
        ids.extend(have[start:])
        row, at = rows[sequence.request.id], len(ids)
        ids.append(0)
        if takes and takes[-1].at + takes[-1].number == at and takes[-1].row + takes[-1].number == row:
            takes[-1] = Take(takes[-1].at, takes[-1].row, takes[-1].number + 1)
        else:
            takes.append(Take(at, row, 1))
    return ids, takes
