"""What a step is asked: one block of int32 for the tokens, places and settings of all its sequences."""

from collections.abc import Sequence as Sized
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.problems.sampling import DRAW, SETTINGS, Settings
from sim.errors import InputError

PAGE = 64  # tokens of a page
NULL_PAGE = 0  # nobody's: where tokens go that fill a bucket up
ALIGNED = 32  # words: a field begins at a multiple of 128 bytes


class Chunk(NamedTuple):
    """The next tokens of one sequence, whose cache holds `start` tokens before them and has these pages."""

    tokens: Sized[int]
    start: int
    pages: Sized[int]
    settings: Settings = Settings()


@dataclass(frozen=True)
class Layout:
    """A bucket: the most sequences, new tokens of all of them together, and pages of each.

    Where `chunks` is above 0, only so many sequences, in the last rows, have more than one new token: those before
    attend in a launch of their own.
    """

    rows: int
    tokens: int
    pages: int
    chunks: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.chunks < self.rows:
            raise InputError(f"chunks must be fewer than rows; rows = {self.rows}, chunks = {self.chunks}")
        if not 1 <= self.rows <= self.tokens or self.pages < 1:
            raise InputError(
                f"a step has 1 row or more, a token a row, a page a row; rows = {self.rows}, tokens = {self.tokens}, "
                f"pages = {self.pages}"
            )

    @property
    def parts(self) -> tuple[tuple[int, int, int], ...]:
        """(first row, rows, most new tokens of one) of each launch of attention; others of a row may have none."""
        if self.chunks:
            first = self.rows - self.chunks
            return (0, first, 1), (first, self.chunks, self.tokens)
        return ((0, self.rows, self.tokens if self.rows < self.tokens else 1),)

    @property
    def capacity(self) -> int:
        """The most tokens of one sequence."""
        return self.pages * PAGE

    @cached_property
    def fields(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Where each field begins in the block, in words, and its shape."""
        shapes = {
            "tokens": (self.tokens,),
            "positions": (self.tokens,),
            "slots": (self.tokens,),
            "query_starts": (self.rows + 1,),
            "lengths": (self.rows,),
            "block_table": (self.rows, self.pages),
            "sample_rows": (self.rows,),
            "settings": (self.rows, SETTINGS),
        }
        found, at = {}, 0
        for name, shape in shapes.items():
            found[name] = at, shape
            at += -(-prod(shape) // ALIGNED) * ALIGNED
        return found

    @cached_property
    def words(self) -> int:
        at, shape = self.fields["settings"]
        return at + prod(shape)

    def views(self, block: Any) -> dict[str, Any]:
        """The fields of a block, by name, over its memory, and what each launch of attention reads of them."""
        found = {name: block[at : at + prod(shape)].reshape(shape) for name, (at, shape) in self.fields.items()}
        for first, rows, _ in self.parts:
            found[f"query_starts.{first}"] = found["query_starts"][first : first + rows + 1]
            found[f"lengths.{first}"] = found["lengths"][first : first + rows]
            found[f"block_table.{first}"] = found["block_table"][first : first + rows]
        return found


class StepInput:
    """One step's block, by default memory of its own, which `fill` writes; `fields` are views of it.

    Tokens that fill a bucket up go to the null page, rows that do have no token. Raises InputError where chunks do not
    fit the layout.
    """

    def __init__(self, layout: Layout, block: NDArray[np.int32] | None = None) -> None:
        self.layout = layout
        self.block: NDArray[np.int32] = np.zeros(layout.words, np.int32) if block is None else block
        self.fields = layout.views(self.block)
        self.chunks: tuple[Chunk, ...] = ()

    def fill(self, chunks: Sized[Chunk]) -> "StepInput":
        """Take these chunks, one a row, in place of those before; one token first if it has `chunks`."""
        layout, fields = self.layout, self.fields
        lengths = [len(chunk.tokens) for chunk in chunks]
        if len(chunks) > layout.rows or sum(lengths) > layout.tokens or min(lengths, default=1) < 1:
            raise InputError(f"chunks of {lengths} tokens do not fit {layout}")
        self.block[:] = 0
        self.chunks = tuple(chunks)
        at, row, first = 0, 0, layout.rows - layout.chunks
        for chunk, length in zip(chunks, lengths, strict=True):
            if layout.chunks and length > 1 and row < first:
                fields["query_starts"][row + 1 : first + 1] = at
                row = first
            end = chunk.start + length
            if row >= layout.rows or (layout.chunks and length > 1 and row < first):
                raise InputError(f"chunks of {lengths} tokens do not fit {layout}")
            if len(chunk.pages) > layout.pages or end > len(chunk.pages) * PAGE:
                raise InputError(
                    f"{end} tokens do not fit the {len(chunk.pages)} pages of a sequence in {layout}, "
                    f"{PAGE} tokens each"
                )
            pages = np.asarray(chunk.pages, np.int32)
            positions = np.arange(chunk.start, end, dtype=np.int32)
            here = slice(at, at + length)
            fields["tokens"][here] = chunk.tokens
            fields["positions"][here] = positions
            fields["slots"][here] = pages[positions // PAGE] * PAGE + positions % PAGE
            fields["block_table"][row, : len(pages)] = pages
            fields["lengths"][row] = end
            fields["settings"][row] = chunk.settings.words()
            at += length
            fields["query_starts"][row + 1] = at
            fields["sample_rows"][row] = at - 1
            row += 1
        fields["query_starts"][row + 1 :] = at
        fields["slots"][at:] = NULL_PAGE * PAGE + np.arange(layout.tokens - at, dtype=np.int32) % PAGE
        return self

    def follow(self, start: int, settings: Settings) -> None:
        """Take one token of the only row from `start` on, in the pages that it was filled with; a token, too, then."""
        (chunk,) = self.chunks
        page, at = divmod(start, PAGE)
        fields = self.fields
        fields["positions"][0] = start
        fields["slots"][0] = chunk.pages[page] * PAGE + at
        fields["lengths"][0] = start + 1
        if settings[:-1] == chunk.settings[:-1] and 0 <= settings.draw < 2**31:
            fields["settings"][0, DRAW] = settings.draw
        else:
            fields["settings"][0] = settings.words()
        self.chunks = (Chunk(chunk.tokens, start, chunk.pages, settings),)

    @property
    def q_lens(self) -> tuple[int, ...]:
        """New tokens of each row."""
        return tuple(int(n) for n in np.diff(self.fields["query_starts"]))

    @property
    def kv_lens(self) -> tuple[int, ...]:
        """Tokens of each row, the new ones among them."""
        return tuple(int(n) for n in self.fields["lengths"])
