"""A forward pass by the definitions, in float64, one head at a time: what both evaluations are held against."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lab.inference.checkpoint import Checkpoint
from lab.inference.config import LlamaConfig

U = 2.0**-24  # unit roundoff of float32


def rounding(config: LlamaConfig, tokens: int, logits: NDArray) -> float:
    """How far two float32 evaluations may lie apart: a rounding for each addition on the longest path.

    Each is taken relative to the largest score (Higham, "Accuracy and Stability", 3.1, partial sums bounded by it).
    """
    heads = config.q_heads * config.head_dim
    norms = 2 * config.head_dim * config.qk_norm
    path = config.layers * (4 * config.d + config.head_dim + norms + tokens + heads + config.ffn) + 2 * config.d
    return 2 * path * U * float(np.abs(logits).max())


def textbook(checkpoint: Checkpoint, tokens: Sequence[int]) -> NDArray[np.float64]:
    """Logits [m, vocab], with half-split rotary embedding, for which rows of q and k are put in order."""
    c, file = checkpoint.config, checkpoint.file

    def weight(name: str, heads: int = 0) -> NDArray[np.float64]:
        w = file.rows(name).astype(np.float64)
        if heads and c.pairs == "neighbours":
            w = w.reshape(heads, c.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)
        return w

    def norm(x: NDArray, name: str) -> NDArray:
        return x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + c.eps) * weight(name)

    def rope(x: NDArray) -> NDArray:
        half = c.head_dim // 2
        radians = c.rope_scaling.frequencies(c.rope_theta, c.head_dim)
        angle = np.outer(np.arange(len(x)), radians)
        a, b = x[:, :half], x[:, half:]
        cos, sin = c.rope_scaling.magnitude * np.cos(angle), c.rope_scaling.magnitude * np.sin(angle)
        return np.hstack([a * cos - b * sin, b * cos + a * sin])

    def projected(h: NDArray, i: int, name: str, heads: int) -> NDArray:
        y = h @ weight(f"blk.{i}.attn_{name}.weight", heads if name in "qk" else 0).T
        return y + weight(f"blk.{i}.attn_{name}.bias") if c.bias else y

    x = weight("token_embd.weight")[list(tokens)]
    seen = np.tril(np.ones((len(tokens), len(tokens)), bool))
    for i in range(c.layers):
        h = norm(x, f"blk.{i}.attn_norm.weight")
        q, k, v = (projected(h, i, name, heads) for name, heads in (("q", c.q_heads), ("k", c.kv_heads), ("v", 0)))
        out = []
        for head in range(c.q_heads):
            kv = head // (c.q_heads // c.kv_heads)
            shared = slice(kv * c.head_dim, (kv + 1) * c.head_dim)
            queries, keys = q[:, head * c.head_dim : (head + 1) * c.head_dim], k[:, shared]
            if c.qk_norm:
                queries = norm(queries, f"blk.{i}.attn_q_norm.weight")
                keys = norm(keys, f"blk.{i}.attn_k_norm.weight")
            scores = np.where(seen, rope(queries) @ rope(keys).T / np.sqrt(c.head_dim), -np.inf)
            p = np.exp(scores - scores.max(axis=1, keepdims=True))
            out.append(p / p.sum(axis=1, keepdims=True) @ v[:, shared])
        x = x + np.hstack(out) @ weight(f"blk.{i}.attn_output.weight").T
        h = norm(x, f"blk.{i}.ffn_norm.weight")
        gate, up = h @ weight(f"blk.{i}.ffn_gate.weight").T, h @ weight(f"blk.{i}.ffn_up.weight").T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weight(f"blk.{i}.ffn_down.weight").T
    return norm(x, "output_norm.weight") @ weight("token_embd.weight" if c.tied else "output.weight").T
