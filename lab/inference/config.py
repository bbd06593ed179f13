"""The dimensions of a Llama-architecture model, and the tensors that they imply."""

from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from lab.inference.gguf_file import GgufFile
from lab.inference.rotary import RopeScaling, read_scaling

_MOST = 2**20  # no dimension of a model that fits in a GPU comes near it
_MOST_LAYERS = 1024
# Metadata of the forward pass that are read, or say nothing about it, by what follows "llama.".
_READ = frozenset(
    {
        "vocab_size",
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.finetuned",
    }
)
# Of all others, the values that leave the forward pass as it is here.
_NEUTRAL = MappingProxyType(
    {
        "attention.causal": True,
        "attention.clamp_kqv": 0.0,
        "attention.max_alibi_bias": 0.0,
        "attention.scale": 0.0,
        "attention.sliding_window": 0,
        "embedding_scale": 1.0,
        "expert_count": 0,
        "expert_used_count": 0,
        "logit_scale": 1.0,
        "residual_scale": 1.0,
        "rope.scaling.yarn_attn_factor": 1.0,
        "rope.scaling.yarn_ext_factor": 1.0,
        "rope.scaling.yarn_log_multiplier": 0.0,
        "tensor_data_layout": "Meta AI original pth",  # Q and K rows in the order that `rotate` expects
        "use_parallel_residual": False,
    }
)


@dataclass(frozen=True)
class LlamaConfig:
    """Llama (Touvron et al., "LLaMA", 2023) with grouped-query attention and without biases.

    `d` is the width of the residual stream, `ffn` of the SwiGLU, `context` the most tokens a sequence may have.
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

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor the model needs, by GGUF name: [out, in] for linear layers."""
        q, kv = self.q_heads * self.head_dim, self.kv_heads * self.head_dim
        layer = {
            "attn_norm": (self.d,),
            "attn_q": (q, self.d),
            "attn_k": (kv, self.d),
            "attn_v": (kv, self.d),
            "attn_output": (self.d, q),
            "ffn_norm": (self.d,),
            "ffn_gate": (self.ffn, self.d),
            "ffn_up": (self.ffn, self.d),
            "ffn_down": (self.d, self.ffn),
        }
        names = {f"blk.{i}.{name}.weight": shape for i in range(self.layers) for name, shape in layer.items()}
        return {"token_embd.weight": (self.vocab, self.d), "output_norm.weight": (self.d,), **names}

    @property
    def optional_shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensors a file may hold besides: an untied head, divisors of the rotary frequencies."""
        return {"output.weight": (self.vocab, self.d), "rope_freqs.weight": (self.head_dim // 2,)}


def read_config(file: GgufFile) -> LlamaConfig:
    """The dimensions that the file's metadata states and its tensors keep; raises InputError otherwise."""
    _require_whole_model(file)
    d = file.integer("llama.embedding_length", 1, _MOST)
    q_heads = file.integer("llama.attention.head_count", 1, _MOST)
    kv_heads = file.integer("llama.attention.head_count_kv", 1, _MOST, default=q_heads)
    head_dim = file.integer("llama.attention.key_length", 2, _MOST, default=max(d // q_heads, 2))
    context = file.integer("llama.context_length", 1, 2**31 - 1)
    rope_theta = file.get("llama.rope.freq_base", float, default=10000.0)
    config = LlamaConfig(
        layers=file.integer("llama.block_count", 1, _MOST_LAYERS),
        d=d,
        ffn=file.integer("llama.feed_forward_length", 1, _MOST),
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=file.integer("llama.vocab_size", 1, _MOST, default=_tokens(file)),
        context=context,
        rope_theta=rope_theta,
        eps=file.get("llama.attention.layer_norm_rms_epsilon", float),
        rope_scaling=read_scaling(file, context, rope_theta),
    )
    if q_heads % kv_heads:
        file.refuse(f"{q_heads} query heads cannot share {kv_heads} KV heads evenly")
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        value = file.integer(key, 1, _MOST, default=head_dim)
        if value != head_dim or head_dim % 2:
            file.refuse(f"{key} is {value} and head_dim {head_dim}; both must be the same even number")
    if not (1 <= config.rope_theta <= 1e12 and 0 <= config.eps < 1):
        file.refuse(f"rotary base {config.rope_theta} or RMSNorm epsilon {config.eps} is out of range")
    if _tokens(file) != config.vocab:
        file.refuse(f"its tokenizer has {_tokens(file)} tokens and its model {config.vocab}")
    _require_tensors(file, config)
    return config


def _require_whole_model(file: GgufFile) -> None:
    """Raise InputError for a part of a model, and for metadata that ask for another forward pass than this one."""
    parts = file.integer("split.count", 0, 2**16, default=0)
    if parts > 1:
        part = file.integer("split.no", 0, parts - 1) + 1
        file.refuse(f"it is part {part} of {parts} of a split model; join them with llama-gguf-split --merge")
    kind = file.get("general.type", str, default="model")
    architecture = file.get("general.architecture", str)
    if kind != "model" or architecture != "llama":
        file.refuse(f"its architecture is {architecture!r} and its type {kind!r}; only a 'llama' 'model' is supported")
    layout = file.integer("general.quantization_version", 0, 2**31, default=2)
    if layout != 2:
        file.refuse(f"its quantised blocks are of version {layout}; only version 2 is supported")
    for key, value in file.metadata.items():
        prefix, _, name = key.partition(".")
        plain = isinstance(value, bool | int | float | str)
        if prefix == architecture and name not in _READ and not (plain and value == _NEUTRAL.get(name)):
            shown = repr(value) if plain else "an array"
            file.refuse(f"its metadata ask for {key} = {shown}, which this forward pass does not know")


def _tokens(file: GgufFile) -> int:
    return len(file.get("tokenizer.ggml.tokens", list))


def _require_tensors(file: GgufFile, config: LlamaConfig) -> None:
    legal = config.shapes | config.optional_shapes
    for name in sorted(config.shapes.keys() - file.tensors.keys()):
        file.refuse(f"the tensor {name!r} is missing")
    for name, tensor in file.tensors.items():
        if name not in legal:
            file.refuse(f"the tensor {name!r} is no part of a Llama model without biases or experts")
        if tensor.shape != legal[name]:
            file.refuse(f"the tensor {name!r} has shape {tensor.shape}; the metadata imply {legal[name]}")
