"""Decode attention's bars: the problems of each part, and what their times must not exceed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log

from experiments.lookup import GATHER, best_peer, is_peer, question_of, read_of
from lab.problems import Attention
from lab.record import Record

Q_HEADS, HEAD_DIM = 32, 128


def decode(batch: int, context: int, kv_heads: int = 8) -> Attention:
    """One query token a sequence, and all of one length, which nobody has to be asked for."""
    return Attention(batch, Q_HEADS, kv_heads, HEAD_DIM, 1, context, uniform=True)


CELLS = (
    decode(64, 8192),
    decode(1, 2048),
    decode(1, 8192),
    decode(16, 8192),
    decode(8, 2048),
    decode(64, 2048),
    decode(1, 8192, 32),
    decode(16, 8192, 32),
    decode(1, 32768, 32),
    decode(1, 131072),
)
LARGE, MIDDLE, SMALL = decode(64, 8192), decode(16, 8192), decode(1, 8192)
LONG, SHORT = 65536, 512  # tokens of one sequence of a skewed batch, and of the others
PAGES = (16, 64)
ALONE = 1  # page: every token lies somewhere else
LATENT, ROPE = 512, 64  # elements of a latent row: of keys and values, and of keys alone
FEW_HEADS, MANY_HEADS = 16, 128  # query heads on one latent row: on one of eight GPUs, and on one
TOKENS = (1, 2, 4, 8, 16)
LAYERS = 32
IN_STEPS = ((1, 8192), (64, 2048))  # batch, context


def skewed(batch: int = 64, page: int = 16) -> Attention:
    """One long sequence among short ones, in a pool with room for these."""
    pages = LONG // page + (batch - 1) * (SHORT // page)
    lengths = (LONG, *[SHORT] * (batch - 1))
    return replace(decode(batch, LONG), page=page, pool=1 + pages, kv_lens=lengths, uniform=False)


def latent(batch: int, context: int, q_heads: int = MANY_HEADS) -> Attention:
    """One query token a sequence of multi-head latent attention, paged, and all of one length."""
    return Attention(batch, q_heads, 1, LATENT + ROPE, 1, context, page=64, latent=LATENT, uniform=True)


def layer(batch: int, context: int, uniform: bool) -> Attention:
    """Of a step: paged, behind the append of its tokens."""
    return replace(decode(batch, context), page=16, settled=True, uniform=uniform)


PARTS: Mapping[str, tuple[Attention, ...]] = {
    "decode": CELLS,
    "skewed": (skewed(),),
    "paged": (
        *(replace(cell, page=page, uniform=False) for cell in (LARGE, MIDDLE, SMALL) for page in (0, *PAGES)),
        replace(LARGE, page=ALONE, uniform=False),
    ),
    "fp8_kv": (LARGE, replace(LARGE, kv="fp8")),
    "queries": tuple(replace(cell, q_len=tokens) for cell in (MIDDLE, SMALL) for tokens in TOKENS),
    "mla": tuple(
        latent(batch, context, heads)
        for heads in (MANY_HEADS, FEW_HEADS)
        for batch in (64, 128)
        for context in (4096, 8192)
    ),
    "planning": tuple(layer(batch, context, uniform) for batch, context in IN_STEPS for uniform in (False, True)),
}

OF_READ, BEYOND_READ_US = {"decode": 1.03, "skewed": 1.07}, 4.0
OF_PEER = 1.01
PEERS_OVER = 1.10  # the best peers' times over ours, in the geometric mean of all cells
OWN_US = {decode(1, 2048): 9.0, decode(1, 8192): 14.5}
MANY_BYTES = 128e6  # of the cache, from which a limit is a share of another time
OF_CONTIGUOUS, BEYOND_CONTIGUOUS_US = 1.02, 1.0
FP8_OVER = 1.8  # bf16's time over fp8's
OF_ONE_TOKEN = {2: 1.08, 4: 1.08, 8: 1.08, 16: 1.12}
OF_GATHER = 1.05
LATENT_RATES, LATENT_SHARE = (4.3e12, 700e12), 0.85  # B/s and FLOP/s; of the larger bill at these
OF_LATENT_READ = 1.10
PLANNING_US = 2.0  # of all layers of a step
BEYOND_ONE_TOKEN_US = {2: 1.5, 4: 1.5, 8: 3.0, 16: 3.0}


@dataclass(frozen=True)
class Cell:
    """A problem's time beside the plain read's and the best peer's in its run, in microseconds; None where not timed.

    `like` is the time of the problem that its part compares it with: contiguous, in bf16, of one token, or planned by
    arithmetic alone. `gather` is that of a plain read through the same block table.
    """

    record: Record
    read: float | None
    peer: Record | None
    like: float | None
    gather: float | None = None

    @property
    def problem(self) -> Attention:
        found = question_of(self.record)
        assert isinstance(found, Attention)
        return found

    @property
    def limits(self) -> dict[str, float]:
        """What its time must not exceed, by what sets the limit."""
        part, p, found = str(self.record.metrics["bar"]), self.problem, {}
        if part in OF_READ and self.read:
            found["the read"] = OF_READ[part] * self.read + BEYOND_READ_US
        if part == "decode" and self.peer and self.peer.us:
            found[self.peer.kernel or ""] = OF_PEER * self.peer.us
        if part == "decode" and (own := OWN_US.get(replace(p, uniform=True))):
            found["its own bar"] = own
        if part == "mla":
            found |= self._latent_limits(p)
        if part == "paged" and p.page == ALONE and self.gather:
            found["the gather"] = OF_GATHER * self.gather
        if self.like is None:
            return found
        if part == "planning" and not p.uniform:
            found["no planning"] = self.like + PLANNING_US / LAYERS
        many = p.kv_bytes >= MANY_BYTES
        if part == "paged" and p.page in PAGES:
            found["contiguous"] = self.like * OF_CONTIGUOUS if many else self.like + BEYOND_CONTIGUOUS_US
        if part == "fp8_kv" and p.kv == "fp8":
            found["bf16"] = self.like / FP8_OVER
        if part == "queries" and p.q_len > 1:
            one = self.like * OF_ONE_TOKEN[p.q_len] if many else self.like + BEYOND_ONE_TOKEN_US[p.q_len]
            found["one token"] = one
        return found

    def _latent_limits(self, p: Attention) -> dict[str, float]:
        found = {self.peer.kernel or "": self.peer.us} if self.peer and self.peer.us else {}
        if p.q_heads == FEW_HEADS:
            return {**found, "the read": OF_LATENT_READ * self.read} if self.read else found
        bytes_a_second, flops_a_second = LATENT_RATES
        bill = max(p.bytes["total"] / bytes_a_second, p.flops / flops_a_second)
        return {**found, "its own bar": 1e6 * bill / LATENT_SHARE}

    @property
    def missed(self) -> dict[str, float]:
        """Its time over each limit that it exceeds."""
        us = self.record.us
        return {name: us / limit for name, limit in self.limits.items() if us and us > limit}


def cells(records: Sequence[Record]) -> list[Cell]:
    """The problems of these parts among the records of one card, searches left out."""
    ours = [r for r in records if r.metrics.get("bar") in PARTS and r.schedule is not None and not is_peer(r)]
    times = {(r.metrics["bar"], question_of(r)): r.us for r in ours}
    return [
        Cell(
            r,
            read_of(records, r),
            best_peer(records, r),
            times.get((r.metrics["bar"], _like(question_of(r), r.metrics["bar"]))),
            read_of(records, r, GATHER),
        )
        for r in ours
    ]


def _like(problem: Attention, part: str) -> Attention:
    """What a part compares a problem with."""
    if part == "planning":
        return replace(problem, uniform=True)
    return replace(problem, page=0, pool=0, kv="bf16", activations="", q_len=1)


def over_peers(found: Sequence[Cell]) -> float | None:
    """The best peers' times over ours, in the geometric mean of decode's cells; None where none was timed."""
    own = [c for c in found if c.record.metrics["bar"] == "decode" and c.record.us and c.peer and c.peer.us]
    ratios = [log((c.peer.us or 0.0) / (c.record.us or 1.0)) for c in own if c.peer]
    return exp(sum(ratios) / len(ratios)) if ratios else None
