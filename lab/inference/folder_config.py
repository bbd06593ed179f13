"""A model's dimensions from the config.json of a Hugging Face folder, which must ask for nothing else."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import msgspec

from lab.inference.config import MOST, MOST_LAYERS, LlamaConfig, require_consistent
from lab.inference.folder import Folder
from lab.inference.rotary import KINDS, RopeScaling, require_sane, yarn_magnitude
from lab.problems.hugging_face import FILE, model_in

# What each architecture adds to Llama (transformers' own classes).
ADDS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"llama": {}, "mistral": {}, "qwen2": {"bias": True}, "qwen3": {"qk_norm": True}}
)


class _Rope(msgspec.Struct, forbid_unknown_fields=True):
    """`rope_scaling`, and `rope_parameters`, as transformers called it later."""

    rope_type: str | None = None
    type: str | None = None  # its older name
    rope_theta: float | None = None
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


class _Config(msgspec.Struct):
    """What is read of config.json beside the sizes, under transformers' own names and with its defaults."""

    model_type: str
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    layer_types: list[str] | None = None
    partial_rotary_factor: float = 1.0
    quantization_config: dict[str, Any] | None = None


def read_config(folder: Folder) -> LlamaConfig:
    """The dimensions that config.json states and the tensors keep; raises InputError otherwise."""
    sizes = model_in(folder.path)
    c: _Config = folder.json(FILE, _Config)
    for what, value, wanted in (
        ("hidden_act", c.hidden_act, "silu"),
        ("attention_bias", c.attention_bias and c.model_type != "qwen2", False),
        ("mlp_bias", c.mlp_bias, False),
        ("partial_rotary_factor", c.partial_rotary_factor, 1.0),
        ("layer_types", sorted(set(c.layer_types or ["full_attention"])), ["full_attention"]),
        ("quantization_config", (c.quantization_config or {}).get("quant_method"), None),
    ):
        if value != wanted:
            folder.refuse(f"its {FILE} asks for {what} = {value!r:.60}, which this forward pass does not know")
    if max(sizes.d, sizes.ffn, sizes.vocab) > MOST or sizes.layers > MOST_LAYERS:
        folder.refuse(f"its {FILE} asks for {sizes.layers:,} layers of {sizes.d:,}, more than any model has")
    rope = c.rope_parameters or c.rope_scaling or _Rope()
    theta = c.rope_theta if rope.rope_theta is None else rope.rope_theta
    if not 1 <= c.max_position_embeddings <= 2**31 - 1:
        folder.refuse(f"its context is {c.max_position_embeddings}; 1 to {2**31 - 1:,} are legal")
    config = LlamaConfig(
        layers=sizes.layers,
        d=sizes.d,
        ffn=sizes.ffn,
        q_heads=sizes.q_heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        vocab=sizes.vocab,
        context=c.max_position_embeddings,
        rope_theta=theta,
        eps=c.rms_norm_eps,
        rope_scaling=_scaling(folder, rope, c.max_position_embeddings, theta),
        tied=sizes.tied,
        **ADDS[c.model_type],
    )
    require_consistent(folder, config)
    return config


def _scaling(folder: Folder, rope: _Rope, context: int, theta: float) -> RopeScaling:
    """The scaling as transformers reads it; InputError for what is not supported."""
    kind = rope.rope_type or rope.type or "default"
    original = rope.original_max_position_embeddings
    if kind == "default":
        return RopeScaling()
    if kind not in KINDS or kind == "none":
        folder.refuse(f"its rotary scaling is {kind!r:.60}; supported: default, linear, yarn, llama3")
    most, least = (
        (rope.high_freq_factor, rope.low_freq_factor) if kind == "llama3" else (rope.beta_fast, rope.beta_slow)
    )
    given = rope.attention_factor
    scaling = RopeScaling(kind, rope.factor, 1.0 if given is None else given, original or context, most, least)
    require_sane(folder, scaling, theta)
    if kind == "yarn" and given is None:
        return replace(scaling, magnitude=yarn_magnitude(scaling.factor))
    return scaling
