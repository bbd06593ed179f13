"""A model's sizes from the config.json of a Hugging Face folder, which may hold anything."""

from pathlib import Path
from typing import Annotated

import msgspec

from lab.problems.model import Model
from lab.problems.protocol import MAX_DIMENSION
from sim.errors import InputError
from sim.formats import FORMATS

FILE = "config.json"
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")  # a gated MLP, attention with shared KV heads, two norms
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_MOST_BYTES = 2**20

Extent = Annotated[int, msgspec.Meta(ge=1, le=MAX_DIMENSION)]


class _Quantization(msgspec.Struct):
    quant_method: str = ""
    bits: int = 0
    group_size: int = 0


class _Kind(msgspec.Struct):
    model_type: str = ""


class _Config(msgspec.Struct):
    """What is read of it, under transformers' own names."""

    model_type: str
    num_hidden_layers: Extent
    hidden_size: Extent
    num_attention_heads: Extent
    intermediate_size: Extent
    vocab_size: Extent
    num_key_value_heads: Extent | None = None
    head_dim: Extent | None = None
    tie_word_embeddings: bool = False
    torch_dtype: str | None = None
    dtype: str | None = None  # its newer name
    sliding_window: int | None = None
    use_sliding_window: bool = True
    quantization_config: _Quantization | None = None


def model_in(path: Path) -> Model:
    """The model that a config.json, or the one in a folder, describes; biases are left out.

    Raises InputError, naming the file, for anything that is no such file of a known architecture with its sizes, and
    for what changes the bytes of weights or KV cache in a way that Model does not know.
    """
    file = path / FILE if path.is_dir() else path
    try:
        return _model(_read(file))
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _read(file: Path) -> _Config:
    if not file.is_file():
        raise InputError(f"there is no such file; a model is a folder with its {FILE}")
    try:
        with file.open("rb") as opened:
            text = opened.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise InputError(f"it has more than {_MOST_BYTES:,} bytes, too many for a {FILE}")
        kind = msgspec.json.decode(text, type=_Kind).model_type
        if kind not in ARCHITECTURES:
            raise InputError(f"its model_type is {kind!r:.60}; known ones: {', '.join(ARCHITECTURES)}")
        return msgspec.json.decode(text, type=_Config)
    except OSError as error:
        raise InputError(f"it cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"it describes no model: {error}") from error


def _model(config: _Config) -> Model:
    c = config
    if c.sliding_window and c.use_sliding_window:
        raise InputError(f"its attention sees {c.sliding_window:,} tokens at most; only whole contexts are known")
    if c.head_dim is None and c.hidden_size % c.num_attention_heads:
        raise InputError(
            f"hidden_size must be a multiple of num_attention_heads where there is no head_dim; "
            f"they are {c.hidden_size:,} and {c.num_attention_heads:,}"
        )
    return Model(
        layers=c.num_hidden_layers,
        d=c.hidden_size,
        q_heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads or c.num_attention_heads,
        head_dim=c.head_dim or c.hidden_size // c.num_attention_heads,
        ffn=c.intermediate_size,
        vocab=c.vocab_size,
        tied=c.tie_word_embeddings,
        weights=_weights(c),
    )


def _weights(config: _Config) -> str:
    """The format of the weights: a quantised one, or what they are stored in."""
    quantised = config.quantization_config
    if quantised is None:
        stored = config.dtype or config.torch_dtype or "bfloat16"
        if stored not in _DTYPES:
            raise InputError(f"its dtype is {stored!r:.60}; known ones: {', '.join(_DTYPES)}")
        return _DTYPES[stored]
    name = "fp8" if quantised.quant_method == "fp8" else f"int{quantised.bits}_g{quantised.group_size}"
    if quantised.quant_method not in ("fp8", "gptq", "awq") or name not in FORMATS:
        raise InputError(
            f"its weights are quantised by {quantised.quant_method!r:.60}, {quantised.bits} bits in groups of "
            f"{quantised.group_size}; known: fp8, and gptq and awq of 4 bits in groups of 32, 64 or 128"
        )
    return name
