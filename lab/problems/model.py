"""Model: one step of a whole Llama-class transformer, as sizes; for bills and floors, not for running."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

from lab.problems.attention import Attention
from lab.problems.protocol import MAX_DIMENSION, require_extents
from sim.errors import InputError
from sim.formats import FORMATS, format_named
from sim.int4 import TILE_ROWS

DECODE, PREFILL = "decode", "prefill"


@dataclass(frozen=True)
class Model:
    """A decode step of `batch` sequences that attend to `context` tokens each, or the prefill of those tokens.

    `ffn` is the width of the gated MLP (three matrices), `tied` whether the head is the embedding table. `weights` and
    `kv` are formats; the cache is by default in that of the activations. Raises InputError for extents outside 1 to
    2^31 - 1, unknown formats and phases.
    """

    kind: ClassVar[str] = "model"

    layers: int
    d: int
    q_heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool = False
    batch: int = 1
    context: int = 2048
    weights: str = "bf16"
    kv: str = ""
    phase: str = DECODE

    def __post_init__(self) -> None:
        extents = ("layers", "d", "q_heads", "kv_heads", "head_dim", "ffn", "vocab", "batch", "context")
        require_extents(self, extents)
        format_named(self.weights)
        if not self.kv:
            object.__setattr__(self, "kv", self.unit)
        if self.phase not in (DECODE, PREFILL):
            raise InputError(f"phase must be {DECODE} or {PREFILL}; phase = {self.phase!r}")
        for what, value in (("tokens of a step", self.tokens), ("q_heads x head_dim", self.q_heads * self.head_dim)):
            if value > MAX_DIMENSION:
                raise InputError(f"{what} must be at most {MAX_DIMENSION:,}; they are {value:,}")
        self.attention  # noqa: B018  (its own checks of heads and format)

    @property
    def unit(self) -> str:
        """The format of the activations, whose arithmetic unit does the work."""
        return self.weights if self.weights in ("fp32", "fp16") else "bf16"

    @property
    def layer_matrices(self) -> dict[str, tuple[int, int]]:
        """[outputs, inputs] of each linear layer of one transformer layer."""
        queries, keys = self.q_heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q": (queries, self.d),
            "k": (keys, self.d),
            "v": (keys, self.d),
            "o": (self.d, queries),
            "gate": (self.ffn, self.d),
            "up": (self.ffn, self.d),
            "down": (self.d, self.ffn),
        }

    @property
    def parameters(self) -> int:
        """Weights of all matrices, norms, embedding table and head."""
        matrices = self.layers * sum(n * k for n, k in self.layer_matrices.values())
        return matrices + self._norms + (1 if self.tied else 2) * self.vocab * self.d

    @property
    def attention(self) -> Attention:
        """The attention of one layer."""
        q_len = self.context if self.phase == PREFILL else 1
        return Attention(self.batch, self.q_heads, self.kv_heads, self.head_dim, q_len, self.context, kv=self.kv)

    @property
    def launches(self) -> int:
        """Kernels of a step, as `lab.inference.layers.Forward` calls them.

        In a layer two norms, q with k and v, their rotation and append, attention, its output, gate with up, their
        product, down; besides them the embedding, the last norm, the head, the sampling, and of a prefill the rows
        whose logits are asked for. Of one token the matrices' launches do what norms and products do but for the first.
        """
        norms = self.tokens == 1
        gates = norms and not (FORMATS[self.weights].group and self.ffn % TILE_ROWS)
        return (9 - 2 * norms - gates) * self.layers + 4 + (self.batch < self.tokens)

    @property
    def tokens(self) -> int:
        """Rows that go through every layer in a step."""
        return self.batch * (self.context if self.phase == PREFILL else 1)

    @property
    def flops(self) -> int:
        """2 a weight and token in every linear layer, and attention; one head row a sequence, norms left out."""
        matrices = self.layers * sum(n * k for n, k in self.layer_matrices.values())
        pairs = self.context * (self.context + 1) // 2 if self.phase == PREFILL else self.context  # of a head
        attention = 4 * self.head_dim * self.q_heads * pairs
        return 2 * self.tokens * matrices + self.batch * (2 * self.vocab * self.d + self.layers * attention)

    @cached_property
    def bytes(self) -> dict[str, int]:
        """Each weight, KV element and activation once; activations are what enters (rows) and leaves (logits)."""
        weights = self.layers * sum(FORMATS[self.weights].nbytes(n, k) for n, k in self.layer_matrices.values())
        tables = (1 if self.tied else 2) * FORMATS[self.weights].nbytes(self.vocab, self.d)
        weights += tables + FORMATS[self.unit].nbytes(1, self._norms)
        activations = FORMATS[self.unit].nbytes(self.tokens, self.d)
        activations += FORMATS[self.unit].nbytes(self.batch, self.vocab)
        kv = self.batch * self.context * self.kv_bytes_per_token
        return {"weights": weights, "kv": kv, "activations": activations, "total": weights + kv + activations}

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the KV cache of one token in all layers."""
        return self.layers * Attention(1, self.q_heads, self.kv_heads, self.head_dim, 1, 1, kv=self.kv).kv_bytes

    @property
    def lookup_bytes(self) -> int:
        """Bytes of an untied embedding table: a step looks up one row a token there and need not stream it."""
        return 0 if self.tied else FORMATS[self.weights].nbytes(self.vocab, self.d)

    @property
    def streamed_bytes(self) -> int:
        """What a step cannot but move through HBM: all but the embedding table, of which rows are looked up."""
        return self.bytes["total"] - self.lookup_bytes

    @property
    def weight_intensity(self) -> float:
        """FLOP per weight byte."""
        return self.flops / self.bytes["weights"]

    @property
    def details(self) -> dict[str, int]:
        return {
            "parameters": self.parameters,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "lookup_bytes": self.lookup_bytes,
        }

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}

    @property
    def _norms(self) -> int:
        return (2 * self.layers + 1) * self.d


# The architectures' own config.json files: meta-llama/Llama-2-7b-hf, Llama-2-13b-hf, Meta-Llama-3-8B, and
# HuggingFaceTB/SmolLM2-135M.
MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "llama-2-7b": Model(32, 4096, q_heads=32, kv_heads=32, head_dim=128, ffn=11008, vocab=32000),
        "llama-2-13b": Model(40, 5120, q_heads=40, kv_heads=40, head_dim=128, ffn=13824, vocab=32000),
        "llama-3-8b": Model(32, 4096, q_heads=32, kv_heads=8, head_dim=128, ffn=14336, vocab=128256),
        "smollm2-135m": Model(30, 576, q_heads=9, kv_heads=3, head_dim=64, ffn=1536, vocab=49152, tied=True),
    }
)


def model_named(name: str) -> Model:
    """The preset of that name; raises InputError and lists the known ones otherwise."""
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}; known models: {', '.join(MODELS)}")
    return MODELS[name]
