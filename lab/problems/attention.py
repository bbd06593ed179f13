"""Attention: softmax(q @ k.T / sqrt(head_dim)) @ v for a batch of sequences, each with its own lengths."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import isfinite
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from lab.problems._attention_draw import draw
from lab.problems._attention_reference import reference
from lab.problems.protocol import (
    EVERY_ROW,
    MAX_DIMENSION,
    Arrays,
    Estimate,
    Operand,
    Problem,
    power_of_two,
    require_activations,
    require_extents,
)
from sim.errors import InputError
from sim.formats import FORMATS, format_named

ORDERS = ("shuffled", "sequential")  # of the pages of a sequence in the pool
NULL_PAGE = 0
PART_TOKENS = 64  # a part keeps at least so many queries and keys
ALWAYS = ("batch", "q_heads", "kv_heads", "head_dim", "q_len", "kv_len", "causal", "kv", "page", "latent")  # in JSON


class Sequence(NamedTuple):
    """One sequence of the batch: its queries and keys, and the row of q and of the contiguous cache it starts at."""

    q_len: int
    kv_len: int
    q_start: int
    kv_start: int


@dataclass(frozen=True)
class Attention(Problem):
    """`batch` sequences of at most `q_len` queries against at most `kv_len` keys each; decode has q_len = 1.

    q is packed, [tokens, q_heads, head_dim]; query head h reads KV head h // (q_heads / kv_heads). A contiguous cache
    is k and v [batch * kv_len, kv_heads, head_dim], a sequence every kv_len rows. With `page` tokens a page it is
    cache [pages, 2, kv_heads, page, head_dim] (k, then v) behind a block table [batch, pages of kv_len], page 0 being
    the null page; `order` is that of a sequence's pages in the pool. `latent` above 0 is multi-head latent attention in
    its absorbed form (DeepSeek-V2, arXiv 2405.04434, 2.1): one KV head, k alone is cached, [pages, page, head_dim]
    where paged, and its first `latent` elements are also the value.
    `kv` is the format of the cache, `activations` that of q and y: kv's own, or bf16 or fp16 beside an fp8 cache,
    which has a float32 scale for each KV head and for each of k and v; so have queries in fp8, whose y is bf16.
    Causal masks are aligned to the bottom right: the last query sees every key; `window` above 0 leaves a query
    only so many of the keys it would see. A query that sees no key yields zeros. `q_lens` and `kv_lens` are each
    sequence's own lengths, from 0, where they are not all the maxima. `lse` asks for the natural logarithm of each
    query's sum of exponentials too. `scale` takes the place of 1 / sqrt(head_dim). `packed` arrays are parts of the
    rows of one projection, which have q_heads + 2 kv_heads heads: those of q, and of k and v of a contiguous cache,
    are the first. Arrays may be larger or smaller than the greatest lengths ask for: `q_rows` are the rows of q,
    `pool` those of k and v, which sequences then have one after another, or the pages of the cache, which sequences
    share where they are too few; `row_pages` are the columns of the block table.
    `settled` promises that lengths, tables and the keys of tokens before a sequence's own queries are written by no
    launch that may still run when this one starts, as in a step, where what precedes it appends those queries' keys;
    `uniform` that every sequence has exactly q_len queries and kv_len keys, so that no array need be asked.
    Raises InputError for extents outside 1 to 2^31 - 1 and shapes that do not fit.
    """

    kind: ClassVar[str] = "attention"
    FORMAT: ClassVar[str] = "kv"
    EXTENTS: ClassVar[tuple[str, ...]] = ("batch", "q_heads", "kv_heads", "q_len", "kv_len")
    OPTIONS: ClassVar[tuple[str, ...]] = (
        "head_dim", "causal", "page", "latent", "activations", "window", "lse", "packed",
    )  # fmt: skip

    batch: int
    q_heads: int
    kv_heads: int
    head_dim: int
    q_len: int
    kv_len: int
    causal: bool = True
    kv: str = "bf16"
    page: int = 0
    latent: int = 0
    activations: str = ""
    q_lens: tuple[int, ...] = ()
    kv_lens: tuple[int, ...] = ()
    window: int = 0
    lse: bool = False
    order: str = "shuffled"  # shuffled, sequential
    scale: float = 0.0  # of the scores; 0: 1 / sqrt(head_dim)
    q_rows: int = 0  # of q; 0: batch * q_len
    pool: int = 0  # rows of k and v, or pages of the cache; 0: every sequence's at its greatest length
    row_pages: int = 0  # columns of the block table; 0: pages of kv_len
    packed: bool = False
    settled: bool = False  # lengths, tables and all keys but those of its own queries
    uniform: bool = False

    def __post_init__(self) -> None:
        require_extents(self, ("batch", "q_heads", "kv_heads", "head_dim", "q_len", "kv_len"))
        format_named(self.kv)
        if not self.activations:
            object.__setattr__(self, "activations", self.kv if self.kv in ("fp32", "fp16") else "bf16")
        if not self.activations == self.kv == "fp8":
            require_activations(self)
        if self.kv in ("fp32", "fp16", "bf16") and self.activations != self.kv:
            raise InputError(f"a cache in {self.kv} takes activations in {self.kv}, not {self.activations}")
        for name, most in (("q_lens", self.q_len), ("kv_lens", self.kv_len)):
            lengths = tuple(getattr(self, name))  # JSON has lists
            object.__setattr__(self, name, lengths)
            if lengths and (len(lengths) != self.batch or not all(0 <= length <= most for length in lengths)):
                raise InputError(f"{name} are {self.batch} lengths from 0 to {most:,}; got {list(lengths)}")
        if self.q_heads % self.kv_heads:
            raise InputError(
                f"q_heads must be a multiple of kv_heads; q_heads = {self.q_heads}, kv_heads = {self.kv_heads}"
            )
        if not 0 <= self.latent <= self.head_dim:
            raise InputError(f"latent must be from 0 to head_dim = {self.head_dim}; latent = {self.latent}")
        if self.latent and self.kv_heads != 1:
            raise InputError(f"a latent cache has one KV head; kv_heads = {self.kv_heads}")
        if self.latent and self.packed:
            raise InputError("a packed projection has keys and values; a latent cache has no values")
        if self.page < 0:
            raise InputError(f"page must be 0 (contiguous) or the tokens of a page; page = {self.page}")
        if self.window < 0 or (self.window and not self.causal):
            raise InputError(f"window must be 0 (none) or the keys that a causal query sees; window = {self.window}")
        if self.order not in ORDERS:
            raise InputError(f"order is {', '.join(ORDERS)}; got {self.order!r}")
        if not (self.scale >= 0 and isfinite(self.scale)):
            raise InputError(f"scale must be above 0, or 0 for 1 / sqrt(head_dim); scale = {self.scale}")
        self._require_room()

    def _require_room(self) -> None:
        """Raise InputError where arrays have no room for the lengths; capacities that are as usual become 0."""
        p = self
        for name in ("q_rows", "pool", "row_pages"):
            if not 0 <= getattr(p, name) <= MAX_DIMENSION:
                raise InputError(f"{name} must be from 0 to {MAX_DIMENSION:,}; {name} = {getattr(p, name):,}")
        least = -(-p.kv_len // p.page) if p.page else 0
        if p.row_pages and not p.page:
            raise InputError("row_pages are for a paged cache; page = 0")
        if p.row_pages and p.row_pages < least:
            raise InputError(
                f"row_pages must be at least {least:,}, the pages of {p.kv_len:,} keys; row_pages = {p.row_pages:,}"
            )
        for name, rows, lengths in (("q_rows", p.q_rows, p.q_lens), ("pool", 0 if p.page else p.pool, p.kv_lens)):
            if rows and sum(lengths) > rows:
                raise InputError(f"the sequences have {sum(lengths):,} rows; {name} = {rows:,}")
        if p.uniform and (p.q_lens or p.kv_lens or p.q_rows or (p.pool and not p.page)):
            raise InputError(
                "uniform sequences have no lengths of their own: q_lens, kv_lens, q_rows or pool are given"
            )
        plain = {"scale": p.head_dim**-0.5, "q_rows": p.batch * p.q_len, "row_pages": least}
        plain["pool"] = 1 + p.batch * (p.row_pages or least) if p.page else p.batch * p.kv_len
        for name, value in plain.items():
            if getattr(p, name) == value:
                object.__setattr__(p, name, type(value)(0))

    @classmethod
    def tiny(cls, form: str, alike: bool = False) -> Self:  # noqa: ARG003 (activations follow from the cache)
        return cls(1, 1, 1, 128, 1, 1, kv=form)

    def usual(self, alike: bool = False) -> "Attention":  # noqa: ARG002
        p = self
        return Attention(p.batch, p.q_heads, p.kv_heads, 128, p.q_len, p.kv_len, kv=p.kv)

    @property
    def unit(self) -> str:
        return self.activations

    @property
    def output(self) -> str:
        """The format of y."""
        return "bf16" if self.activations == "fp8" else self.activations

    @property
    def value_dim(self) -> int:
        return self.latent or self.head_dim

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.q_heads // self.kv_heads

    @property
    def score_scale(self) -> float:
        """What scores are multiplied by."""
        return self.scale or self.head_dim**-0.5

    @property
    def tokens(self) -> int:
        """Rows of q that there is room for."""
        return self.q_rows or self.batch * self.q_len

    @property
    def kv_rows(self) -> int:
        """Rows of a contiguous cache."""
        return self.pool or self.batch * self.kv_len

    @property
    def pages_per_sequence(self) -> int:
        """Columns of the block table; 0 where the cache is contiguous."""
        return self.row_pages or -(-self.kv_len // self.page) if self.page else 0

    @property
    def pool_pages(self) -> int:
        """Pages of the pool: every sequence's at its greatest length, and the null page."""
        return self.pool or 1 + self.batch * self.pages_per_sequence

    def row_heads(self, heads: int) -> int:
        """Heads of a row of the array that has so many heads of q, k or v."""
        return self.q_heads + 2 * self.kv_heads if self.packed else heads

    @property
    def inputs(self) -> dict[str, Operand]:
        found = {"q": Operand((self.tokens, self.row_heads(self.q_heads), self.head_dim), self.activations)}
        if self.page and self.latent:
            found["cache"] = Operand((self.pool_pages, self.page, self.head_dim), self.kv)
        elif self.page:
            found["cache"] = Operand((self.pool_pages, 2, self.kv_heads, self.page, self.head_dim), self.kv)
        else:
            rows = Operand((self.kv_rows, self.row_heads(self.kv_heads), self.head_dim), self.kv)
            found |= {"k": rows} if self.latent else {"k": rows, "v": rows}
        if self.kv == "fp8":
            scale = Operand((self.kv_heads,), "fp32")
            found |= {"k_scale": scale} if self.latent else {"k_scale": scale, "v_scale": scale}
            found |= {"q_scale": scale} if self.activations == "fp8" else {}
        found["q_starts"] = Operand((self.batch + 1,), "int32", indexes=True)
        found["kv_lens"] = Operand((self.batch,), "int32", indexes=True)
        if self.page:
            found["block_table"] = Operand((self.batch, self.pages_per_sequence), "int32", indexes=True)
        else:
            found["kv_starts"] = Operand((self.batch,), "int32", indexes=True)
        return found

    @property
    def outputs(self) -> dict[str, Operand]:
        found = {"y": Operand((self.tokens, self.q_heads, self.value_dim), self.output)}
        if self.lse:
            found["lse"] = Operand((self.tokens, self.q_heads), "fp32")
        return found

    @cached_property
    def sequences(self) -> tuple[Sequence, ...]:
        """Every sequence, in the order of the batch; as even as the rows allow where lengths are not given."""
        packed = self.pool > 0 and not self.page
        q_lens = self.q_lens or _shared(self.q_len, self.batch, self.tokens)
        kv_lens = self.kv_lens or _shared(self.kv_len, self.batch, self.kv_rows if packed else None)
        q_starts, ends = (np.concatenate(([0], np.cumsum(lengths))).tolist() for lengths in (q_lens, kv_lens))
        kv_starts = ends if packed else range(0, self.batch * self.kv_len, self.kv_len)
        return tuple(
            Sequence(*one) for one in zip(q_lens, kv_lens, q_starts[: self.batch], kv_starts[: self.batch], strict=True)
        )

    @cached_property
    def _alike(self) -> Counter[tuple[int, int]]:
        """How many sequences have each (q_len, kv_len)."""
        if self.q_lens or self.kv_lens or self.q_rows or self.pool:
            return Counter((sequence.q_len, sequence.kv_len) for sequence in self.sequences)
        return Counter({(self.q_len, self.kv_len): self.batch})  # however many: a batch is only counted here

    @property
    def rows(self) -> int:
        """Queries that are there."""
        return sum(times * q_len for (q_len, _), times in self._alike.items())

    def visible(self, sequence: Sequence) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(first, end): which keys each query of a sequence sees; none where end <= first."""
        if not self.causal:
            zeros = np.zeros(sequence.q_len, np.int64)
            return zeros, zeros + sequence.kv_len
        end = np.arange(sequence.q_len) + 1 + sequence.kv_len - sequence.q_len
        return np.maximum(end - self.window, 0) if self.window else np.zeros_like(end), end

    @property
    def pairs(self) -> int:
        """Unmasked (query, key) pairs of all heads."""
        return self.q_heads * sum(times * self._pairs(*lengths) for lengths, times in self._alike.items())

    def _pairs(self, q_len: int, kv_len: int) -> int:
        """Of one head of a sequence: the causal query that ends at key e sees min(e, window) keys."""
        if not self.causal:
            return q_len * kv_len
        least, window = max(kv_len - q_len, 0), self.window or kv_len
        slope = [min(end, window) for end in (least, kv_len)]
        triangle = slope[1] * (slope[1] + 1) // 2 - slope[0] * (slope[0] + 1) // 2
        return triangle + window * (kv_len - least - (slope[1] - slope[0]))

    @property
    def flops(self) -> int:
        """2 head_dim for the score and 2 value_dim for the weighted sum of each unmasked pair."""
        return 2 * (self.head_dim + self.value_dim) * self.pairs

    def _seen(self) -> Iterator[tuple[int, int]]:
        """(times, how many of its keys any query of a sequence sees)."""
        for (q_len, kv_len), times in self._alike.items():
            unseen = max(kv_len - q_len + 1 - self.window, 0) if self.window else 0
            yield times, kv_len - unseen if q_len else 0

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache that some query sees: key and value of each token, or the one latent vector.

        Pages that sequences share, as they do where the pool has too few for all, count once.
        """
        vectors = 1 if self.latent else 2
        seen = sum(times * keys for times, keys in self._seen())
        if self.page:
            seen = min(seen, (self.pool_pages - 1) * self.page)
        return FORMATS[self.kv].nbytes(vectors * seen * self.kv_heads, self.head_dim)

    @cached_property
    def read_bytes(self) -> int:
        """What is seen of the cache, the queries that are there, and the entries of the block table in use, once."""
        queries = FORMATS[self.activations].nbytes(self.rows * self.q_heads, self.head_dim)
        pages = sum(times * -(-keys // self.page) for times, keys in self._seen()) if self.page else 0
        return self.kv_bytes + queries + 4 * pages

    @cached_property
    def write_bytes(self) -> int:
        y = FORMATS[self.output].nbytes(self.rows * self.q_heads, self.value_dim)
        return y + (4 * self.rows * self.q_heads if self.lse else 0)

    @property
    def details(self) -> dict[str, int]:
        per_token = FORMATS[self.kv].nbytes((1 if self.latent else 2) * self.kv_heads, self.head_dim)
        return {"pairs": self.pairs, "kv_bytes_per_token": per_token}

    def envelope(self) -> "Attention":
        return replace(self, q_lens=(), kv_lens=(), order=ORDERS[0])

    def part(self, flops: float) -> "Attention":
        """Fewer sequences, then fewer heads, then fewer queries and keys: each query and head is computed by itself."""
        p = self
        if p.flops > flops and p.batch > 1:
            batch = max(1, int(p.batch * flops // p.flops))
            p = replace(p, batch=batch, q_lens=p.q_lens[:batch], kv_lens=p.kv_lens[:batch])
        if p.flops > flops and p.kv_heads > 1:
            kv_heads = max(1, int(p.kv_heads * flops // p.flops))
            p = replace(p, kv_heads=kv_heads, q_heads=kv_heads * p.group)
        while p.flops > flops and max(p.q_len, p.kv_len) > PART_TOKENS:
            q_len, kv_len = (max(min(n, PART_TOKENS), n // 2) for n in (p.q_len, p.kv_len))
            q_lens = tuple(min(n, q_len) for n in p.q_lens)
            p = replace(p, q_len=q_len, kv_len=kv_len, q_lens=q_lens, kv_lens=tuple(min(n, kv_len) for n in p.kv_lens))
        return p

    def tuned_class(self) -> dict[str, Any]:
        """The envelope with batch and lengths rounded up to powers of two."""
        up = {name: power_of_two(getattr(self, name)) for name in ("batch", "q_len", "kv_len")}
        plain = replace(
            self.envelope(), scale=0.0, q_rows=0, pool=0, row_pages=0, packed=False, settled=False, uniform=False
        )
        return {**plain.as_dict(), **up}

    def as_dict(self) -> dict[str, Any]:
        """Extents and options, and every further field that is not as usual; lengths as lists."""
        usual = Attention(*(getattr(self, name) for name in ALWAYS))
        names = [f.name for f in fields(self) if f.name in ALWAYS or getattr(self, f.name) != getattr(usual, f.name)]
        values = {name: getattr(self, name) for name in names}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {"kind": self.kind, **plain}

    def indices(self) -> dict[str, NDArray[np.int32]]:
        """Where queries start, how long sequences are, and where their keys lie; the null page where none is."""
        starts = [sequence.q_start for sequence in self.sequences]
        found = {
            "q_starts": np.array([*starts, self.rows], np.int32),
            "kv_lens": np.array([sequence.kv_len for sequence in self.sequences], np.int32),
        }
        if not self.page:
            return {**found, "kv_starts": np.array([sequence.kv_start for sequence in self.sequences], np.int32)}
        pages = np.arange(1, self.pool_pages, dtype=np.int32)
        if self.order == "shuffled":
            pages = np.random.default_rng(0).permutation(pages)
        used = np.arange(self.pages_per_sequence) < -(-found["kv_lens"] // self.page)[:, None]
        table = np.full(used.shape, NULL_PAGE, np.int32)
        table[used] = np.resize(pages, used.sum())  # those without keys leave theirs to others
        return {**found, "block_table": table}

    def draw(self, rng: np.random.Generator, special: str = "") -> dict[str, NDArray]:
        """N(0, 1), scales from 1/2 to 2; rows of q, slots, pages and heads that are no sequence's are NaN.

        Special values are among those of q.
        """
        return draw(self, rng, special)

    def reference(self, arrays: Arrays, rows: slice = EVERY_ROW) -> dict[str, Estimate]:
        """See _attention_reference: computed in float64, for the chosen ones of the queries that are there.

        Scores beyond 2^24 are outside the bound's promise: their rounding is all that an exponential sees.
        """
        return reference(self, arrays, rows)


def _shared(most: int, batch: int, rows: int | None) -> tuple[int, ...]:
    """The lengths of sequences that share so many rows evenly, each at most `most` long."""
    if rows is None or rows >= most * batch:
        return (most,) * batch
    return tuple(min(most, rows // batch + (b < rows % batch)) for b in range(batch))
