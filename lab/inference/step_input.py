"""What a step is asked: one block of int32 for the tokens, places and settings of all its sequences."""

from collections.abc import Sequence as Sized
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.problems.sampling import SETTINGS, Settings
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
    """A bucket: the most sequences, new tokens of all of them together, and pages of each."""

    rows: int
    tokens: int
    pages: int

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= self.tokens or self.pages < 1:
            raise InputError(
                f"a step has 1 row or more, a token a row, a page a row; rows = {self.rows}, tokens = {self.tokens}, "
                f"pages = {self.pages}"
            )

    @property
    def q_len(self) -> int:
        """The most new tokens of one sequence: all of them where others may have none."""
        return self.tokens if self.rows < self.tokens else 1

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
        """The fields of a block, by name, over its memory."""
        return {name: block[at : at + prod(shape)].reshape(shape) for name, (at, shape) in self.fields.items()}


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
        """Take these chunks, one a row, in place of those before."""
        layout, fields = self.layout, self.fields
        lengths = [len(chunk.tokens) for chunk in chunks]
        if len(chunks) > layout.rows or sum(lengths) > layout.tokens or min(lengths, default=1) < 1:
            raise InputError(f"chunks of {lengths} tokens do not fit {layout}")
        self.block[:] = 0
        self.chunks = tuple(chunks)
        at = 0
        for row, (chunk, length) in enumerate(zip(chunks, lengths, strict=True)):
            end = chunk.start + length
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
        fields["query_starts"][len(chunks) + 1 :] = at
        fields["slots"][at:] = NULL_PAGE * PAGE + np.arange(layout.tokens - at, dtype=np.int32) % PAGE
        return self

    @property
    def q_lens(self) -> tuple[int, ...]:
        """New tokens of each row."""
        return tuple(int(n) for n in np.diff(self.fields["query_starts"]))

    @property
    def kv_lens(self) -> tuple[int, ...]:
        """Tokens of each row, the new ones among them."""
        return tuple(int(n) for n in self.fields["lengths"])
