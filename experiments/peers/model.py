"""What a user would run instead of the lab's step: PyTorch's, its parts between attentions compiled, in one graph."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lab.problems import Model

EPS = 1e-5


@dataclass(frozen=True)
class Layer:
    """One layer's weights, shared with the lab's step."""

    attention_norm: Tensor
    qkv: Tensor
    output: Tensor
    ffn_norm: Tensor
    gate_up: Tensor
    down: Tensor


class TorchDecode:
    """One decode step of `batch` sequences whose caches, [batch, kv_heads, context, head_dim], hold all but its tokens.

    `weights` are tensors by the names of the lab's step, `turns` cosine and sine of the last position.
    """

    def __init__(self, model: Model, weights: dict[str, Tensor], caches: list[tuple[Tensor, Tensor]]) -> None:
        self.model = model
        self._layers = [
            Layer(
                weights[f"layers.{i}.attention_norm"],
                *(weights[f"layers.{i}.{name}.w"] for name in ("qkv", "output")),
                weights[f"layers.{i}.ffn_norm"],
                *(weights[f"layers.{i}.{name}.w"] for name in ("gate_up", "down")),
            )
            for i in range(model.layers)
        ]
        self._embedding, self._norm, self._head = weights["embedding"], weights["norm"], weights["head.w"]
        turns = weights["turns"][model.context - 1]
        self._cos, self._sin = (torch.cat([turns[:, i]] * 2).to(self._norm.dtype) for i in (0, 1))
        self._caches = caches

    def logits(self, tokens: Tensor, compiled: Callable[[Callable], Callable] = lambda part: part) -> Tensor:
        """Scores [batch, vocab]; `compiled` is what the parts between attentions go through."""
        before, after = compiled(self._before), compiled(self._after)
        x = functional.embedding(tokens, self._embedding)
        for layer, (keys, values) in zip(self._layers, self._caches, strict=True):
            q = before(x, layer.attention_norm, layer.qkv, keys[:, :, -1], values[:, :, -1])
            x = after(x, self._attended(q, keys, values), layer.output, layer.ffn_norm, layer.gate_up, layer.down)
        return functional.linear(functional.rms_norm(x, (self.model.d,), self._norm, EPS), self._head)

    def _before(self, x: Tensor, norm: Tensor, qkv: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        m = self.model
        y = functional.linear(functional.rms_norm(x, (m.d,), norm, EPS), qkv).view(x.shape[0], -1, m.head_dim)
        turned = y[:, : m.q_heads + m.kv_heads]
        half = m.head_dim // 2
        swapped = torch.cat([-turned[..., half:], turned[..., :half]], -1)
        turned = turned * self._cos + swapped * self._sin
        keys.copy_(turned[:, m.q_heads :])
        values.copy_(y[:, m.q_heads + m.kv_heads :])
        return turned[:, : m.q_heads]

    def _attended(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The query heads of a KV head as rows of queries: one token sees every key."""
        m = self.model
        packed = q.reshape(q.shape[0], m.kv_heads, m.q_heads // m.kv_heads, m.head_dim)
        return functional.scaled_dot_product_attention(packed, keys, values).reshape(q.shape[0], -1)

    def _after(
        self, x: Tensor, attended: Tensor, output: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        x = x + functional.linear(attended, output)
        gate, up = functional.linear(functional.rms_norm(x, (self.model.d,), norm, EPS), gate_up).chunk(2, -1)
        return x + functional.linear(functional.silu(gate) * up, down)


def contiguous(cache: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Keys and values [batch, kv_heads, context, head_dim] of a paged cache whose sequences have pages in a row."""
    _, _, kv_heads, page, dim = cache.shape
    both = cache[1:].view(batch, -1, 2, kv_heads, page, dim).permute(2, 0, 3, 1, 4, 5)
    keys, values = both.reshape(2, batch, kv_heads, -1, dim)
    return keys.contiguous(), values.contiguous()


def captured(step: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """What a step enqueues, as one graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph
