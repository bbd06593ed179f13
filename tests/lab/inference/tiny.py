"""A Llama of two layers as a GGUF file, so that tests need no download."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.inference.tokenizer import _BYTES

gguf = pytest.importorskip("gguf", reason="reading weights needs the extra `model`")
pytest.importorskip("tokenizers", reason="tokenizing needs the extra `model`")

D, FFN, Q_HEADS, KV_HEADS, HEAD_DIM, LAYERS, CONTEXT = 64, 96, 4, 2, 64, 2, 400
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [
    "Ġ t",
    "h e",
    "Ġt he",
    "i n",
    "o r",
    "Ã ©",
    *(f"q {c}" for c in "bcdfghj"),
]  # the last ones for a vocabulary of whole 16-byte rows
TOKENS = [*CONTROLS, *sorted(_BYTES), *(m.replace(" ", "") for m in MERGES)]
VOCAB = len(TOKENS)
TEMPLATE = (  # blocks on lines of their own, and a turn that only exists where it is asked for
    "{%- for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\n' + message.content | trim }}\n"
    "{{- eos_token }}\n{% endfor %}\n"
    "{% if add_generation_prompt %}\n    {{- '<|im_start|>assistant\n' }}\n{%- endif %}"
)
TYPES = ("Q4_1", "Q8_0", "F16", "BF16", "F32", "Q4_0", "Q5_1")  # of the linear layers, in turn


def shapes() -> dict[str, tuple[int, ...]]:
    layer = {
        "attn_norm": (D,),
        "attn_q": (Q_HEADS * HEAD_DIM, D),
        "attn_k": (KV_HEADS * HEAD_DIM, D),
        "attn_v": (KV_HEADS * HEAD_DIM, D),
        "attn_output": (D, Q_HEADS * HEAD_DIM),
        "ffn_norm": (D,),
        "ffn_gate": (FFN, D),
        "ffn_up": (FFN, D),
        "ffn_down": (D, FFN),
    }
    inner = {f"blk.{i}.{part}.weight": shape for i in range(LAYERS) for part, shape in layer.items()}
    return {"token_embd.weight": (VOCAB, D), "output_norm.weight": (D,), **inner}


def tensors(seed: int = 0) -> dict[str, tuple[np.ndarray, str]]:
    """Values and type of every tensor; those of a norm lie near 1."""
    rng = np.random.default_rng(seed)
    made = {}
    for i, (name, shape) in enumerate(shapes().items()):
        if len(shape) == 1:
            made[name] = (rng.uniform(0.5, 1.5, shape).astype(np.float32), "F32")
        else:
            values = rng.standard_normal(shape, np.float32) * np.float32(2 / np.sqrt(shape[-1]))
            made[name] = (values, "Q8_0" if name == "token_embd.weight" else TYPES[i % len(TYPES)])
    return made


METADATA: dict[str, Any] = {
    "llama.block_count": LAYERS,
    "llama.embedding_length": D,
    "llama.feed_forward_length": FFN,
    "llama.attention.head_count": Q_HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.context_length": CONTEXT,
    "llama.attention.key_length": HEAD_DIM,
    "llama.attention.value_length": HEAD_DIM,
    "llama.rope.dimension_count": HEAD_DIM,
    "llama.rope.freq_base": 10000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3 if t in CONTROLS else 1 for t in TOKENS],
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.chat_template": TEMPLATE,
}


def write(
    path: Path,
    metadata: dict[str, Any] | None = None,
    weights: dict[str, Any] | None = None,
    architecture: str = "llama",
) -> Path:
    """Write the model with metadata and tensors, floats or blocks, replaced or added; None leaves one out."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (METADATA | (metadata or {})).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, made in (tensors() | (weights or {})).items():
        if made is not None:
            values, kind = made
            number = gguf.GGMLQuantizationType[kind]
            raw = values if values.dtype == np.uint8 else gguf.quants.quantize(values, number)
            writer.add_tensor(name, raw, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
