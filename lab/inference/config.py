"""The dimensions of a Llama-class model, and the tensors that they imply."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn, Protocol

from lab.inference.rotary import RopeScaling
from sim.errors import InputError

MOST = 2**20  # no dimension of a model that fits in a GPU comes near it
MOST_LAYERS = 1024


class Shaped(Protocol):
    """A tensor of a file, as far as its shape: outermost first."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Tensors(Protocol):
    """What a file of weights holds, by GGUF names."""

    @property
    def tensors(self) -> Mapping[str, Shaped]: ...

    def refuse(self, reason: str) -> NoReturn:
        """Raise the InputError that names the file."""


@dataclass(frozen=True)
class LlamaConfig:
    """Llama (Touvron et al., "LLaMA", 2023) with grouped-query attention, and what Qwen2 and Qwen3 add to it.

    `d` is the width of the residual stream, `ffn` of the SwiGLU, `context` the most tokens a sequence may have. `pairs`
    says which elements of a head turn together, as RopeAppend has them; `bias` is added to queries, keys and values
    (Qwen2), `qk_norm` normalises each head of queries and of keys (Qwen3); the head is the embedding where `tied`.
    """

    layers: int
    d: int
    ffn: int
    q_heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rope_theta: float
    eps: float
    rope_scaling: RopeScaling
    pairs: str = "halves"
    bias: bool = False
    qk_norm: bool = False
    tied: bool = False

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor the model needs, by GGUF name: [out, in] for linear layers."""
        q, kv = self.q_heads * self.head_dim, self.kv_heads * self.head_dim
        layer = {
            "attn_norm.weight": (self.d,),
            "attn_q.weight": (q, self.d),
            "attn_k.weight": (kv, self.d),
            "attn_v.weight": (kv, self.d),
            "attn_output.weight": (self.d, q),
            "ffn_norm.weight": (self.d,),
            "ffn_gate.weight": (self.ffn, self.d),
            "ffn_up.weight": (self.ffn, self.d),
            "ffn_down.weight": (self.d, self.ffn),
        }
        if self.bias:
            layer |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
        if self.qk_norm:
            layer |= {"attn_q_norm.weight": (self.head_dim,), "attn_k_norm.weight": (self.head_dim,)}
        names = {f"blk.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()}
        head = {} if self.tied else {"output.weight": (self.vocab, self.d)}
        return {"token_embd.weight": (self.vocab, self.d), "output_norm.weight": (self.d,), **head, **names}

    @property
    def optional_shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensors a file may hold besides: a copy of a tied head, divisors of the rotary frequencies."""
        return {"output.weight": (self.vocab, self.d), "rope_freqs.weight": (self.head_dim // 2,)}

    def shard(self, ranks: int) -> "LlamaConfig":
        """What one of `ranks` GPUs has of each layer; raises InputError where heads or ffn cannot be divided evenly."""
        parts = {name: getattr(self, name) for name in ("q_heads", "kv_heads", "ffn")}
        for name, whole in parts.items():
            if ranks < 1 or whole % ranks:
                raise InputError(f"a model of {name} = {whole:,} cannot be divided among {ranks} ranks")
        return replace(self, **{name: whole // ranks for name, whole in parts.items()})


def require_consistent(file: Tensors, config: LlamaConfig) -> None:
    """Raise InputError where the file's dimensions contradict each other or its tensors."""
    c = config
    if c.q_heads % c.kv_heads:
        file.refuse(f"{c.q_heads} query heads cannot share {c.kv_heads} KV heads evenly")
    if c.head_dim % 2:
        file.refuse(f"its head_dim must be even, for elements turn in pairs; it is {c.head_dim}")
    if not (1 <= c.rope_theta <= 1e12 and 0 < c.eps < 1):
        file.refuse(f"rotary base {c.rope_theta} or RMSNorm epsilon {c.eps} is out of range")
    legal = c.shapes | c.optional_shapes
    for name in sorted(c.shapes.keys() - file.tensors.keys()):
        file.refuse(f"the tensor {name!r} is missing")
    for name, tensor in file.tensors.items():
        if name not in legal:
            file.refuse(f"the tensor {name!r} is no part of such a model")
        if tensor.shape != legal[name]:
            file.refuse(f"the tensor {name!r} has shape {tensor.shape}; the dimensions imply {legal[name]}")
