"""A step of the loop: what the scheduler decided, how a chip is told it, what came back."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from lab.inference.step_input import NULL_PAGE, PAGE, Layout, StepInput
from lab.problems.sampling import SETTINGS
from lab.serving.request import Sequence

_DECODE = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # rows of one token each
_MIXED_TOKENS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)  # edges of the tiles of a GEMM, mostly
_MIXED_ROWS = (8, 64, 256, 1024)
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

    Copies are made before the rows are computed: within the cache, to the host, back
    from it. `decode_kv` counts the tokens that rows of one token attend to, `pairs` the query-key pairs of the others.
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
    decodes: int = 0
    decode_kv: int = 0
    pairs: int = 0

    @property
    def rows(self) -> int:
        return len(self.sequences)

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

    def of(self, rows: int, tokens: int) -> Layout:
        """The least bucket for so many rows and tokens."""
        if rows == tokens:
            rows = _at_least(_DECODE, rows, self.max_rows)
            return Layout(rows, rows, self.pages)
        tokens = _at_least(_MIXED_TOKENS, tokens, self.max_tokens)
        return Layout(min(tokens - 1, _at_least(_MIXED_ROWS, rows, self.max_rows)), tokens, self.pages)

    def edges(self) -> list[int]:
        """Token counts of mixed buckets, the largest first."""
        return [*sorted({self.max_tokens, *(n for n in _MIXED_TOKENS if n < self.max_tokens)}, reverse=True)]

    def all(self) -> list[Layout]:
        """Every bucket there is, the smallest first."""
        decode = [self.of(rows, rows) for rows in (*(n for n in _DECODE if n < self.max_rows), self.max_rows)]
        mixed = [
            self.of(min(rows, tokens - 1), tokens)
            for tokens in reversed(self.edges())
            for rows in (*(n for n in _MIXED_ROWS if n < self.max_rows), self.max_rows)
        ]
        return list(dict.fromkeys([*decode, *mixed]))


def _at_least(edges: tuple[int, ...], value: int, most: int) -> int:
    return min(most, next((edge for edge in edges if edge >= value), most))


class Slots:
    """What packing needs of each running sequence, by its slot: its block table and its settings."""

    def __init__(self, rows: int, pages: int) -> None:
        self.tables = np.zeros((rows, pages), np.int32)
        self.settings = np.zeros((rows, SETTINGS), np.int32)
        self._free = list(range(rows - 1, -1, -1))

    def seat(self, sequence: Sequence) -> None:
        """Give a sequence a slot."""
        sequence.slot = self._free.pop()
        self.settings[sequence.slot] = sequence.request.settings.words()

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


def pack(plan: StepPlan, slots: Slots, into: StepInput, before: dict[int, int]) -> list[Take]:
    """Write a plan into a bucket's block; what is not known yet comes from the step `before`, its row by sequence id.

    Tokens that fill the bucket up go to the null page, rows that do have no token.
    """
    fields, layout = into.fields, into.layout
    into.block[:] = 0
    rows, tokens = plan.rows, plan.tokens
    starts, counts = np.array(plan.starts, np.int32), np.array(plan.counts, np.int32)
    seats = np.array([sequence.slot for sequence in plan.sequences], np.intp)
    ends = np.cumsum(counts)
    ids: list[int] = []
    takes: list[Take] = []
    for sequence, start, count in zip(plan.sequences, plan.starts, plan.counts, strict=True):
        have = sequence.tokens
        if start + count > len(have):
            row = before[sequence.request.id]
            at = len(ids) + count - 1
            if takes and takes[-1].at + takes[-1].number == at and takes[-1].row + takes[-1].number == row:
                takes[-1] = Take(takes[-1].at, takes[-1].row, takes[-1].number + 1)
            else:
                takes.append(Take(at, row, 1))
            ids.extend(have[start:])
            ids.append(0)
        elif count == 1:
            ids.append(have[start])
        else:
            ids.extend(have[start : start + count])
    positions = np.arange(tokens, dtype=np.int32)
    positions += np.repeat(starts - (ends - counts), counts).astype(np.int32)
    fields["tokens"][:tokens] = ids
    fields["positions"][:tokens] = positions
    pages = slots.tables[np.repeat(seats, counts), positions // PAGE]
    fields["slots"][:tokens] = pages * PAGE + positions % PAGE
    fields["slots"][tokens:] = NULL_PAGE * PAGE + np.arange(layout.tokens - tokens, dtype=np.int32) % PAGE
    fields["query_starts"][1 : rows + 1] = ends
    fields["query_starts"][rows + 1 :] = tokens
    fields["lengths"][:rows] = starts + counts
    fields["block_table"][:rows] = slots.tables[seats]
    fields["sample_rows"][:rows] = ends - 1
    fields["settings"][:rows] = slots.settings[seats]
    prompts = [len(sequence.request.prompt) for sequence in plan.sequences]
    fields["settings"][:rows, DRAW] = np.maximum(starts + counts - prompts, 0)
    return takes
