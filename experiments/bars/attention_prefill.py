"""Prefill attention's bars: whole prompts, and chunks of queries on long contexts, against other libraries."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from experiments.bars import attention_decode
from experiments.lookup import best_peer, is_peer
from lab.problems import Attention
from lab.record import Record

HEADS, HEAD_DIM = 32, 128
PROMPTS = ((4, 2048), (2, 4096), (1, 8192), (1, 16384))  # sequences, and tokens of each
CHUNK = 512  # queries
CONTEXTS = (8192, 32768, 65536)


def chunk(context: int, q_heads: int = HEADS, kv_heads: int = 8) -> Attention:
    """The last queries of a long prompt."""
    return Attention(1, q_heads, kv_heads, HEAD_DIM, CHUNK, context)


def fp8(problem: Attention) -> tuple[Attention, ...]:
    """The same on a cache in fp8, with queries in bf16 and in fp8."""
    return tuple(replace(problem, kv="fp8", activations=activations) for activations in ("bf16", "fp8"))


FEW_HEADS = 8, 1  # query heads, KV heads
PARTS: Mapping[str, tuple[Attention, ...]] = {
    "prefill": tuple(
        Attention(batch, HEADS, HEADS, HEAD_DIM, length, length, causal=causal)
        for causal in (True, False)
        for batch, length in PROMPTS
    ),
    "prefill_fp8": tuple(
        problem
        for causal in (True, False)
        for batch, length in ((4, 2048), (1, 8192), (1, 16384))
        for problem in fp8(Attention(batch, HEADS, HEADS, HEAD_DIM, length, length, causal=causal))
    ),
    "chunk_fp8": fp8(chunk(CONTEXTS[-1])),
    "chunk": (*map(chunk, CONTEXTS), *(chunk(context, *FEW_HEADS) for context in CONTEXTS)),
}
OWN_RATE = {chunk(CONTEXTS[-1], *FEW_HEADS): 550e12}  # FLOP/s


class Cell(attention_decode.Cell):
    """A problem's time beside the best peer's in its run."""

    @property
    def limits(self) -> dict[str, float]:
        """What its time must not exceed, by what sets the limit."""
        found = {self.peer.kernel or "": self.peer.us} if self.peer and self.peer.us else {}
        if self.problem in OWN_RATE:
            found["its own bar"] = 1e6 * self.problem.flops / OWN_RATE[self.problem]
        return found


def cells(records: Sequence[Record]) -> list[attention_decode.Cell]:
    """The problems of these parts among the records of one card, searches left out."""
    ours = [r for r in records if r.metrics.get("bar") in PARTS and r.schedule is not None and not is_peer(r)]
    return [Cell(r, None, best_peer(records, r), None) for r in ours]
