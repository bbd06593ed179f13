"""Attention: softmax(q @ k.T / sqrt(head_dim)) @ v for a batch of sequences that share one shape."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lab.problems.linear import require_extents
from sim.errors import InputError
from sim.formats import FORMATS, decode, encode, format_named


@dataclass(frozen=True)
class Attention:
    """q [batch, q_len, q_heads, head_dim] against k, v [batch, kv_len, kv_heads, head_dim]; decode has q_len = 1.

    Causal masks are aligned to the bottom right: the last query sees every key. `kv` is the format of the cache. `page`
    is the tokens of a cache page, 0 for a contiguous cache. `latent` above 0 is multi-head latent attention in its
    absorbed form (DeepSeek-V2, arXiv 2405.04434, 2.1): one vector a token and head is cached, whose first `latent`
    elements are also the value. Raises InputError for extents outside 1 to 2^31 - 1 and shapes that do not fit.
    """

    kind: ClassVar[str] = "attention"

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

    def __post_init__(self) -> None:
        require_extents(self, ("batch", "q_heads", "kv_heads", "head_dim", "q_len", "kv_len"))
        format_named(self.kv)
        if self.q_heads % self.kv_heads:
            raise InputError(
                f"q_heads must be a multiple of kv_heads; q_heads = {self.q_heads}, kv_heads = {self.kv_heads}"
            )
        if self.causal and self.kv_len < self.q_len:
            raise InputError(f"causal attention needs kv_len >= q_len; kv_len = {self.kv_len}, q_len = {self.q_len}")
        if not 0 <= self.latent <= self.head_dim:
            raise InputError(f"latent must be from 0 to head_dim = {self.head_dim}; latent = {self.latent}")
        if self.page < 0:
            raise InputError(f"page must be 0 (contiguous) or the tokens of a page; page = {self.page}")

    @property
    def weights(self) -> str:
        """The format of the operand that is streamed from HBM: here the cache, whatever the model's weights are."""
        return self.kv

    @property
    def activations(self) -> str:
        """The format of q, whose unit does the arithmetic."""
        return self.kv if self.kv in ("fp32", "fp16") else "bf16"

    @property
    def output(self) -> str:
        """The format of y."""
        return self.activations

    @property
    def value_dim(self) -> int:
        return self.latent or self.head_dim

    @property
    def pairs(self) -> int:
        """Unmasked (query, key) pairs of all heads."""
        masked = self.q_len * (self.q_len - 1) // 2 if self.causal else 0
        return self.batch * self.q_heads * (self.q_len * self.kv_len - masked)

    @property
    def flops(self) -> int:
        """2 head_dim for the score and 2 value_dim for the weighted sum of each unmasked pair."""
        return 2 * (self.head_dim + self.value_dim) * self.pairs

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache: key and value of each token, or the one latent vector that is both."""
        vectors = 1 if self.latent else 2
        return FORMATS[self.kv].nbytes(vectors * self.batch * self.kv_len * self.kv_heads, self.head_dim)

    @property
    def bytes(self) -> dict[str, int]:
        """Compulsory HBM bytes: cache, queries, outputs and block table, each once."""
        activations = self.read_bytes - self.kv_bytes + self.write_bytes
        return {"weights": 0, "kv": self.kv_bytes, "activations": activations, "total": self.kv_bytes + activations}

    @property
    def read_bytes(self) -> int:
        queries = FORMATS[self.activations].nbytes(self.batch * self.q_len * self.q_heads, self.head_dim)
        block_table = 4 * self.batch * -(-self.kv_len // self.page) if self.page else 0
        return self.kv_bytes + queries + block_table

    @property
    def write_bytes(self) -> int:
        return FORMATS[self.output].nbytes(self.batch * self.q_len * self.q_heads, self.value_dim)

    @property
    def weight_intensity(self) -> None:
        """There are no weights in attention."""

    @property
    def details(self) -> dict[str, int]:
        return {"pairs": self.pairs, "kv_bytes_per_token": self.kv_bytes // (self.batch * self.kv_len)}

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}

    def draw(self, rng: np.random.Generator) -> dict[str, NDArray]:
        """Random inputs as storage bits, from N(0, 1), with the cache contiguous; a latent cache is k alone."""
        cache = (self.batch, self.kv_len, self.kv_heads, self.head_dim)
        shapes = {"q": (self.batch, self.q_len, self.q_heads, self.head_dim), "k": cache}
        if not self.latent:
            shapes["v"] = cache
        formats = {"q": self.activations, "k": self.kv, "v": self.kv}
        return {name: encode(rng.standard_normal(shape, np.float32), formats[name]) for name, shape in shapes.items()}

    def reference(self, arrays: Mapping[str, NDArray]) -> tuple[NDArray, NDArray]:
        """(y, bound): y [batch, q_len, q_heads, value_dim] in float64 and the error a right kernel may have.

        With u = 2^-24 a score is off by at most e = (head_dim + 2) u sum |q||k| / sqrt(head_dim), so a weight by a
        factor of exp(2 e); it is then rounded to the activations' format, and kv_len of them are added in any order:
        bound = u_out |y| + (2 expm1(2 e) + u_activations + (2 kv_len + 8) u) sum p |v|.
        """
        q, k = decode(arrays["q"], self.activations), decode(arrays["k"], self.kv)
        v = k[..., : self.latent] if self.latent else decode(arrays["v"], self.kv)
        group = self.q_heads // self.kv_heads
        scale = 1 / np.sqrt(self.head_dim)
        visible = self._visible()
        y = np.empty((self.batch, self.q_len, self.q_heads, self.value_dim))
        bound = np.empty_like(y)
        for b in range(self.batch):
            for head in range(self.q_heads):
                query = q[b, :, head].astype(np.float64)
                key, value = (a[b, :, head // group].astype(np.float64) for a in (k, v))
                scores = np.where(visible, query @ key.T * scale, -np.inf)
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                weights /= weights.sum(axis=1, keepdims=True)
                y[b, :, head] = weights @ value
                e = (self.head_dim + 2) * 2.0**-24 * scale * (np.abs(query) @ np.abs(key).T).max(axis=1, keepdims=True)
                relative = 2 * np.expm1(2 * e) + FORMATS[self.activations].unit_roundoff
                bound[b, :, head] = (relative + (2 * self.kv_len + 8) * 2.0**-24) * (weights @ np.abs(value))
        return y, bound + FORMATS[self.output].unit_roundoff * np.abs(y)

    def _visible(self) -> NDArray[np.bool_]:
        """[q_len, kv_len]: whether a query sees a key."""
        if not self.causal:
            return np.ones((self.q_len, self.kv_len), np.bool_)
        last = np.arange(self.q_len)[:, None] + self.kv_len - self.q_len
        return np.arange(self.kv_len)[None, :] <= last
