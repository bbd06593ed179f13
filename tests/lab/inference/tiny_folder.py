"""Models of two layers as Hugging Face folders, of every architecture, so that tests need no download."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.lab.inference import tiny

safetensors = pytest.importorskip("safetensors.numpy", reason="reading folders needs the extra `model`")
tokenizers = pytest.importorskip("tokenizers", reason="tokenizing needs the extra `model`")

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
CONFIG: dict[str, Any] = {
    "num_hidden_layers": tiny.LAYERS,
    "hidden_size": tiny.D,
    "intermediate_size": tiny.FFN,
    "num_attention_heads": tiny.Q_HEADS,
    "num_key_value_heads": tiny.KV_HEADS,
    "head_dim": tiny.HEAD_DIM,  # not hidden_size / num_attention_heads
    "vocab_size": tiny.VOCAB,
    "max_position_embeddings": tiny.CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 0,
}


def tensors(architecture: str, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 values that bf16 holds exactly, by transformers' names."""
    rng = np.random.default_rng(seed)
    q, kv = tiny.Q_HEADS * tiny.HEAD_DIM, tiny.KV_HEADS * tiny.HEAD_DIM

    def matrix(n: int, k: int) -> np.ndarray:
        return rounded(rng.standard_normal((n, k)) * 2 / np.sqrt(k))

    def vector(n: int, low: float, high: float) -> np.ndarray:
        return rounded(rng.uniform(low, high, n))

    made = {"model.embed_tokens.weight": matrix(tiny.VOCAB, tiny.D), "model.norm.weight": vector(tiny.D, 0.5, 1.5)}
    made["lm_head.weight"] = matrix(tiny.VOCAB, tiny.D)
    for i in range(tiny.LAYERS):
        at = f"model.layers.{i}"
        for name, shape in (
            ("self_attn.q_proj", (q, tiny.D)),
            ("self_attn.k_proj", (kv, tiny.D)),
            ("self_attn.v_proj", (kv, tiny.D)),
            ("self_attn.o_proj", (tiny.D, q)),
            ("mlp.gate_proj", (tiny.FFN, tiny.D)),
            ("mlp.up_proj", (tiny.FFN, tiny.D)),
            ("mlp.down_proj", (tiny.D, tiny.FFN)),
        ):
            made[f"{at}.{name}.weight"] = matrix(*shape)
            if architecture == "qwen2" and name[-6:] in ("q_proj", "k_proj", "v_proj"):
                made[f"{at}.{name}.bias"] = vector(shape[0], -1, 1)
        for name in ("input_layernorm", "post_attention_layernorm"):
            made[f"{at}.{name}.weight"] = vector(tiny.D, 0.5, 1.5)
        if architecture == "qwen3":
            for name in ("q_norm", "k_norm"):
                made[f"{at}.self_attn.{name}.weight"] = vector(tiny.HEAD_DIM, 0.5, 1.5)
    return made


def rounded(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def write(
    folder: Path,
    architecture: str = "llama",
    config: dict[str, Any] | None = None,
    weights: dict[str, np.ndarray | None] | None = None,
    dtype: Any = ml_dtypes.bfloat16,
    shards: int = 2,
) -> Path:
    """Write the model with keys and tensors replaced or added; None leaves one out."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = {"model_type": architecture, **CONFIG, **(config or {})}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in keys.items() if value is not None}))
    kept = {n: t.astype(dtype) for n, t in (tensors(architecture) | (weights or {})).items() if t is not None}
    if shards == 1:
        safetensors.save_file(kept, folder / "model.safetensors")
    else:
        names = sorted(kept)
        weight_map = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
        for file in set(weight_map.values()):
            safetensors.save_file({n: kept[n] for n in names if weight_map[n] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    write_tokenizer(folder)
    return folder


def library_tokenizer() -> Any:
    """The tiny vocabulary as the library has it: byte-level BPE, with its control tokens added."""
    merges = [tuple(merge.split(" ")) for merge in tiny.MERGES]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({t: i for i, t in enumerate(tiny.TOKENS)}, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(tiny.CONTROLS)
    return made


def write_tokenizer(folder: Path) -> None:
    library_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"eos_token": {"content": "<|im_end|>"}, "bos_token": None, "chat_template": tiny.TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
