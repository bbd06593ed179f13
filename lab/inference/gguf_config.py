"""A model's dimensions from the metadata of a GGUF file, which must ask for nothing else."""

from dataclasses import replace
from types import MappingProxyType
from typing import Any

from lab.inference.config import MOST, MOST_LAYERS, LlamaConfig, require_consistent
from lab.inference.gguf_file import GgufFile
from lab.inference.rotary import KINDS, RopeScaling, require_sane, yarn_magnitude

# What each architecture adds, and which elements of a head turn together in its files.
ARCHITECTURES = MappingProxyType(
    {
        "llama": MappingProxyType({"pairs": "neighbours"}),
        "qwen2": MappingProxyType({"bias": True}),
        "qwen3": MappingProxyType({"qk_norm": True}),
    }
)
# Metadata of the forward pass that are read, or say nothing about it, by what follows the architecture's name.
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
        "tensor_data_layout": "Meta AI original pth",  # Q and K rows as `neighbours` has them
        "use_parallel_residual": False,
    }
)


def read_config(file: GgufFile) -> LlamaConfig:
    """The dimensions that the file's metadata states and its tensors keep; raises InputError otherwise."""
    arch = _require_whole_model(file)
    d = file.integer(f"{arch}.embedding_length", 1, MOST)
    q_heads = file.integer(f"{arch}.attention.head_count", 1, MOST)
    head_dim = file.integer(f"{arch}.attention.key_length", 2, MOST, default=max(d // q_heads, 2))
    context = file.integer(f"{arch}.context_length", 1, 2**31 - 1)
    theta = file.get(f"{arch}.rope.freq_base", float, default=10000.0)
    tokens = len(file.get("tokenizer.ggml.tokens", list))
    config = LlamaConfig(
        layers=file.integer(f"{arch}.block_count", 1, MOST_LAYERS),
        d=d,
        ffn=file.integer(f"{arch}.feed_forward_length", 1, MOST),
        q_heads=q_heads,
        kv_heads=file.integer(f"{arch}.attention.head_count_kv", 1, MOST, default=q_heads),
        head_dim=head_dim,
        vocab=file.integer(f"{arch}.vocab_size", 1, MOST, default=tokens),
        context=context,
        rope_theta=theta,
        eps=file.get(f"{arch}.attention.layer_norm_rms_epsilon", float),
        rope_scaling=_scaling(file, arch, context, theta),
        tied="output.weight" not in file.tensors,
        **ARCHITECTURES[arch],  # type: ignore[arg-type]
    )
    for key in (f"{arch}.rope.dimension_count", f"{arch}.attention.value_length"):
        value = file.integer(key, 1, MOST, default=head_dim)
        if value != head_dim:
            file.refuse(f"{key} is {value} and head_dim {head_dim}; both must be the same")
    if tokens != config.vocab:
        file.refuse(f"its tokenizer has {tokens} tokens and its model {config.vocab}")
    require_consistent(file, config)
    return config


def _require_whole_model(file: GgufFile) -> str:
    """The architecture; raises InputError for a part of a model, and for metadata that ask for another forward pass."""
    parts = file.integer("split.count", 0, 2**16, default=0)
    if parts > 1:
        part = file.integer("split.no", 0, parts - 1) + 1
        file.refuse(f"it is part {part} of {parts} of a split model; join them with llama-gguf-split --merge")
    kind = file.get("general.type", str, default="model")
    architecture: str = file.get("general.architecture", str)
    if kind != "model" or architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        file.refuse(f"its architecture is {architecture!r} and its type {kind!r}; only models of {known} are supported")
    layout = file.integer("general.quantization_version", 0, 2**31, default=2)
    if layout != 2:
        file.refuse(f"its quantised blocks are of version {layout}; only version 2 is supported")
    for key, value in file.metadata.items():
        prefix, _, name = key.partition(".")
        plain = isinstance(value, bool | int | float | str)
        if prefix == architecture and name not in _READ and not (plain and value == _NEUTRAL.get(name)):
            shown = repr(value) if plain else "an array"
            file.refuse(f"its metadata ask for {key} = {shown}, which this forward pass does not know")
    return architecture


def _scaling(file: GgufFile, arch: str, context: int, theta: float) -> RopeScaling:
    """The scaling that the metadata ask for, as llama.cpp reads them; InputError for what is not supported.

    A factor without a type is linear, under its older name too; 0 is none. Llama 3's comes as a tensor of divisors.
    """

    def number(name: str, default: float) -> Any:
        return file.get(f"{arch}.rope.{name}", float, default=default)

    kind = file.get(f"{arch}.rope.scaling.type", str, default="linear")
    if kind not in KINDS or kind == "llama3":
        file.refuse(f"its rotary scaling is {kind!r}; supported: none, linear, yarn")
    factor = number("scaling.factor", number("scale_linear", 0.0)) or 1.0
    magnitude = number("scaling.attn_factor", 1.0)
    scaling = RopeScaling(kind, factor, magnitude)
    if kind == "yarn":
        scaling = RopeScaling(
            kind,
            factor,
            magnitude,
            file.integer(f"{arch}.rope.scaling.original_context_length", 1, 2**31 - 1, default=context),
            number("scaling.yarn_beta_fast", 32.0),
            number("scaling.yarn_beta_slow", 1.0),
        )
    require_sane(file, scaling, theta)
    return replace(scaling, magnitude=magnitude * yarn_magnitude(factor)) if kind == "yarn" else scaling
