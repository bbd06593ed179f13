"""A step as calls of kernels: each a problem, and what its operands are called in the step."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle, pairwise
from types import MappingProxyType
from typing import NamedTuple

from lab.inference.config import LlamaConfig
from lab.inference.step_input import PAGE, Layout
from lab.problems import Attention, Linear, Operand, Problem
from lab.problems.embedding import Embedding
from lab.problems.rmsnorm import RMSNorm
from lab.problems.rope_append import RopeAppend
from lab.problems.sampling import Sampling
from lab.problems.swiglu import SwiGLU
from sim.int4 import TILE_ROWS


class Call(NamedTuple):
    """A problem, and the names of the arrays that its operands are."""

    problem: Problem
    arrays: Mapping[str, str]


@dataclass(frozen=True)
class Forward:
    """A model's step: dimensions, what each matrix asks of one token, and how the cache is kept.

    Matrices are `layers.<i>.qkv`, `output`, `gate_up` and `down`, and `head`; q, k and v are one, and gate and up. The
    cache has `pool` pages a layer in the format `kv`. Beside them a layer has `layers.<i>.bias` and `layers.<i>.norms`
    where the model adds a bias to queries, keys and values or normalises their heads.
    Where it `joins`, a step of one token has its gates and norms in its matrices' launches; the ranks of a model do not
    join, as what a matrix makes is summed over them before it is added.
    """

    config: LlamaConfig
    matrices: Mapping[str, Linear]
    pool: int
    kv: str = "bf16"
    activations: str = "bf16"
    joins: bool = True

    def calls(self, layout: Layout) -> Iterator[Call]:
        """Of one step, in order."""
        c, tokens = self.config, layout.tokens
        norm = RMSNorm(tokens, c.d, self.activations, residual=False, eps=c.eps)
        rope = self._rope(layout)
        attentions = [(row, self._attention(layout, *part)) for row, *part in layout.parts]
        yield self._embedding(tokens, c.vocab, "tokens", "embedding", "stream0")
        yield Call(norm, {"x": "stream0", "weight": "layers.0.attention_norm", "y": "normed"})
        gates, norms = self.joined(layout)
        streams = cycle(pairwise(("stream0", "stream1", "stream0")))
        for i in range(c.layers):
            layer, behind = f"layers.{i}", f"layers.{i + 1}.attention_norm" if i + 1 < c.layers else "norm"
            cache = f"{layer}.cache"
            yield self._linear(f"{layer}.qkv", tokens, "normed", "qkv", rooted=norms and i > 0)
            own = {name: f"{layer}.{name}" for name in rope.weight_names}
            yield Call(rope, {name: name for name in rope.inputs} | own | {"q": "q", "cache": cache})
            for row, attention in attentions:
                scales = {name: name for name in attention.inputs if name.endswith("_scale")}
                names = {"q_starts": "query_starts", "kv_lens": "lengths", "block_table": "block_table"}
                where = {operand: f"{name}.{row}" for operand, name in names.items()}
                yield Call(attention, {"q": "q", "cache": cache, **scales, **where, "y": "attended"})
            yield from self._to_stream(f"{layer}.output", tokens, "attended", next(streams), f"{layer}.ffn_norm", norms)
            if gates:
                yield self._linear(f"{layer}.gate_up", tokens, "normed", "gated", rooted=norms, epilogue="swiglu")
            else:
                yield self._linear(f"{layer}.gate_up", tokens, "normed", "gate_up", rooted=norms)
                yield Call(SwiGLU(tokens, c.ffn, self.activations), {"gate_up": "gate_up", "y": "gated"})
            yield from self._to_stream(f"{layer}.down", tokens, "gated", next(streams), behind, norms)
        last = "normed"
        if layout.rows < tokens:
            yield self._embedding(layout.rows, tokens, "sample_rows", "normed", "last")
            last = "last"
        yield self._linear("head", layout.rows, last, "logits", rooted=norms)
        sampling = Sampling(layout.rows, c.vocab, self.activations)
        yield Call(sampling, {name: name for name in (*sampling.inputs, *sampling.outputs)})

    def buffers(self, layout: Layout) -> dict[str, Operand]:
        """The arrays that only a step itself reads and writes, and its results."""
        written: dict[str, Operand] = {}
        for call in self.calls(layout):
            own = call.problem.outputs
            written |= {call.arrays[name]: own[name] for name in own if not call.arrays[name].endswith(".cache")}
        return written

    def cache(self) -> Operand:
        """The keys and values of one layer."""
        c = self.config
        return Operand((self.pool, 2, c.kv_heads, PAGE, c.head_dim), self.kv)

    def _embedding(self, rows: int, of: int, ids: str, table: str, y: str) -> Call:
        problem = Embedding(rows, self.config.d, self.activations, of)
        return Call(problem, {"ids": ids, "table": table, "y": y})

    def joined(self, layout: Layout) -> tuple[bool, bool]:
        """Whether the launches of matrices make gates too, and norms: for one token, where gates end with a tile."""
        norms = self.joins and layout.tokens == layout.rows == 1
        groups = any(problem.group for name, problem in self.matrices.items() if name.endswith("gate_up"))
        return norms and not (groups and self.config.ffn % TILE_ROWS), norms

    def _to_stream(
        self, name: str, tokens: int, x: str, streams: tuple[str, str], norm: str, joined: bool
    ) -> Iterator[Call]:
        """A matrix whose result is added to the first of two arrays, which makes the other, and the norm of that."""
        before, after = streams
        if joined:
            given = {"residual": before, "norm": norm, "total": after, "total_squares": "squares"}
            yield self._linear(name, tokens, x, "normed", epilogue="norm", given=given)
            return
        yield self._linear(name, tokens, x, "branch")
        problem = RMSNorm(tokens, self.config.d, self.activations, eps=self.config.eps)
        yield Call(problem, {"x": "branch", "residual": before, "weight": norm, "y": "normed", "total": after})

    def _linear(
        self,
        name: str,
        tokens: int,
        x: str,
        y: str,
        rooted: bool = False,
        epilogue: str = "none",
        given: Mapping[str, str] = MappingProxyType({}),
    ) -> Call:
        own = {operand: f"{name}.{operand}" for operand in self.matrices[name].inputs if operand != "x"}
        problem = replace(self.matrices[name], m=tokens, epilogue=epilogue)
        if rooted:
            problem = replace(problem, prologue="norm", eps=self.config.eps)
            own["squares"] = "squares"
        return Call(problem, {"x": x, **own, **given, "y": y})

    def _rope(self, layout: Layout) -> RopeAppend:
        c = self.config
        return RopeAppend(
            layout.tokens,
            c.q_heads,
            c.kv_heads,
            c.head_dim,
            self.kv,
            page=PAGE,
            pairs=c.pairs,
            activations=self.activations,
            context=c.context,
            pool=self.pool,
            bias=c.bias,
            norm=c.qk_norm,
            eps=c.eps,
            settled=True,
        )

    def _attention(self, layout: Layout, rows: int, q_len: int) -> Attention:
        c = self.config
        return Attention(
            rows,
            c.q_heads,
            c.kv_heads,
            c.head_dim,
            q_len,
            layout.capacity,
            kv=self.kv,
            page=PAGE,
            activations=self.activations,
            q_rows=layout.tokens,
            pool=self.pool,
            settled=True,
        )
