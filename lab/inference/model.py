"""The Llama forward pass in float32 array code: what steps of kernels are held against."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.inference.checkpoint import Checkpoint, TensorFile, floats
from lab.inference.config import LlamaConfig
from lab.inference.progress import Advance, silent
from lab.inference.reference import Reference
from sim.errors import InputError

DIVISORS = "rope_freqs.weight"
_QUERIES = 256  # rows of queries whose scores exist at once


Layer = Mapping[str, Any]  # one transformer layer: norms, matrices [out, in] and biases, by GGUF names


class KVCache:
    """Keys and values of one sequence, preallocated: [layers, kv_heads, capacity, head_dim] each; `length` are in use.

    Raises InputError where the model's context is shorter than the capacity.
    """

    def __init__(self, config: LlamaConfig, capacity: int) -> None:
        if capacity > config.context:
            raise InputError(f"prompt and answer take up to {capacity} tokens; the model's context is {config.context}")
        shape = (config.layers, config.kv_heads, capacity, config.head_dim)
        self.keys, self.values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, keys: Any, values: Any) -> tuple[Any, Any]:
        """Store [m, kv_heads, head_dim] behind the first `length` tokens; returns all of this layer's so far.

        Every layer stores at the same place: `length` grows when the step is over.
        """
        end = self.length + keys.shape[0]
        self.keys[layer, :, self.length : end] = keys.swapaxes(0, 1)
        self.values[layer, :, self.length : end] = values.swapaxes(0, 1)
        return self.keys[layer, :, :end], self.values[layer, :, :end]


class Llama:
    """A model whose weights have been loaded onto a unit."""

    def __init__(self, checkpoint: Checkpoint, unit: Reference, advance: Advance = silent) -> None:
        """Load every tensor; `advance` hears how many are loaded."""
        self.config = config = checkpoint.config
        self.unit = unit
        handles = {}
        for done, name in enumerate(config.shapes):
            advance(done)
            handles[name] = floats(checkpoint.file, name)
        self._layers: list[Layer] = [
            {name.removeprefix(f"blk.{i}."): handle for name, handle in handles.items() if name.startswith(f"blk.{i}.")}
            for i in range(config.layers)
        ]
        self._norm = handles["output_norm.weight"]
        self._embedding = handles["token_embd.weight"]
        self._head = self._embedding if config.tied else handles["output.weight"]
        self._frequencies = frequencies(config, checkpoint.file)

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for a sequence of at most `capacity` tokens."""
        return KVCache(self.config, capacity)

    def forward(self, tokens: Sequence[int], cache: KVCache) -> Any:
        """One step: hidden states [m, d] of m new tokens, whose keys and values join the cache.

        m > 1 is prefill, m = 1 is decode. Raises InputError where the cache is full.
        """
        m, start = len(tokens), cache.length
        if start + m > cache.capacity:
            raise InputError(f"{start} tokens and {m} more do not fit in a KV cache of {cache.capacity}")
        x = self._embedding[list(tokens)]
        turn = self._turn(start, m)
        for i, layer in enumerate(self._layers):
            x = x + self._attention(i, layer, self._normalise(x, layer["attn_norm.weight"]), turn, cache)
            x = x + self._feed_forward(layer, self._normalise(x, layer["ffn_norm.weight"]))
        cache.length = start + m
        return self._normalise(x, self._norm)

    def logits(self, hidden: Any) -> Any:
        """Scores [m, vocab] of the token that follows each hidden state [m, d]."""
        return self.unit(hidden, self._head)

    def _normalise(self, x: Any, weight: Any) -> Any:
        """RMSNorm (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019)."""
        mean_square = (x * x).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + np.float32(self.config.eps)) * weight

    def _turn(self, start: int, m: int) -> tuple[Any, Any]:
        """(cos, sin) of the rotary angles, [m, 1, head_dim / 2]; angles in float64, for far positions."""
        angles = np.arange(start, start + m)[:, None, None] * self._frequencies
        magnitude = self.config.rope_scaling.magnitude
        cos, sin = (magnitude * turned(angles) for turned in (np.cos, np.sin))
        return cos.astype(np.float32), sin.astype(np.float32)

    def _attention(self, i: int, layer: Layer, x: Any, turn: tuple[Any, Any], cache: KVCache) -> Any:
        c = self.config
        q, k, v = (
            (self.unit(x, layer[f"attn_{name}.weight"]) + layer.get(f"attn_{name}.bias", np.float32(0))).reshape(
                x.shape[0], -1, c.head_dim
            )
            for name in "qkv"
        )
        if c.qk_norm:
            q, k = self._normalise(q, layer["attn_q_norm.weight"]), self._normalise(k, layer["attn_k_norm.weight"])
        keys, values = cache.append(i, rotate(k, turn, c.pairs), v)
        return self.unit(attend(rotate(q, turn, c.pairs), keys, values), layer["attn_output.weight"])

    def _feed_forward(self, layer: Layer, x: Any) -> Any:
        """SwiGLU (Shazeer, "GLU Variants Improve Transformer", 2020)."""
        gate = self.unit(x, layer["ffn_gate.weight"])
        up = self.unit(x, layer["ffn_up.weight"])
        silu = gate / (1 + np.exp(-gate.clip(-80, None)))  # below -80 it is 0 for every purpose
        return self.unit(silu * up, layer["ffn_down.weight"])


def frequencies(config: LlamaConfig, file: TensorFile) -> NDArray[np.float64]:
    """Radians a position of each pair of a head, divided by what the file says of it."""
    plain = config.rope_scaling.frequencies(config.rope_theta, config.head_dim)
    return plain / floats(file, DIVISORS) if DIVISORS in file.tensors else plain


def rotate(x: Any, turn: tuple[Any, Any], pairs: str) -> Any:
    """Rotary embedding (Su et al., "RoFormer", 2021) of [m, heads, head_dim].

    GGUF stores the Q and K rows of `llama` so that `neighbours` 2i and 2i + 1 are a pair, not i and i + head_dim / 2.
    """
    cos, sin = turn
    half = x.shape[-1] // 2
    neighbours = pairs == "neighbours"
    a, b = (x[..., 0::2], x[..., 1::2]) if neighbours else (x[..., :half], x[..., half:])
    both = [a * cos - b * sin, a * sin + b * cos]
    return np.stack(both, axis=-1).reshape(x.shape) if neighbours else np.concatenate(both, axis=-1)


def attend(q: Any, keys: Any, values: Any) -> Any:
    """Causal attention of the last m of n tokens -> [m, q_heads * head_dim].

    q is [m, q_heads, head_dim], keys and values are [kv_heads, n, head_dim]. Query head h reads KV
    head h // (q_heads / kv_heads).
    """
    (m, q_heads, head_dim), (kv_heads, n, _) = q.shape, keys.shape
    group = q_heads // kv_heads
    q = (q * np.float32(head_dim**-0.5)).reshape(m, kv_heads, group, head_dim).transpose(1, 2, 0, 3)
    parts = []
    for first in range(0, m, _QUERIES):
        rows = q[:, :, first : first + _QUERIES]
        count = rows.shape[2]
        last = n - m + first + count  # keys that the last of these rows sees
        scores = rows.reshape(kv_heads, group * count, head_dim) @ keys[:, :last].swapaxes(1, 2)
        hidden = np.arange(last)[None, :] > np.arange(last - count, last)[:, None]
        scores = np.where(hidden, np.float32(-np.inf), scores.reshape(kv_heads, group, count, last))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = weights / weights.sum(axis=-1, keepdims=True)
        y = weights.reshape(kv_heads, group * count, last) @ values[:, :last]
        parts.append(y.reshape(kv_heads, group, count, head_dim))
    return np.concatenate(parts, axis=2).transpose(2, 0, 1, 3).reshape(m, q_heads * head_dim)
