"""A Hugging Face config.json as a model: what it says, and one sentence for whatever else it holds."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.problems import MODELS, Model
from lab.problems.hugging_face import model_in
from sim.errors import InputError

LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}


def written(folder: Path, text: str | bytes | dict[str, Any]) -> Path:
    content = json.dumps(text) if isinstance(text, dict) else text
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_it_is_the_model_that_it_describes(tmp_path: Path) -> None:
    folder = written(tmp_path, LLAMA_3_8B)
    assert model_in(folder) == model_in(folder / "config.json") == MODELS["llama-3-8b"]


@pytest.mark.parametrize(
    ("changed", "field", "value"),
    [
        ({"num_key_value_heads": None}, "kv_heads", 32),
        ({"head_dim": 64}, "head_dim", 64),
        ({"head_dim": None}, "head_dim", 128),
        ({"tie_word_embeddings": True}, "tied", True),
        ({"torch_dtype": "float16"}, "weights", "fp16"),
        ({"dtype": "float32", "torch_dtype": None}, "weights", "fp32"),
        ({"quantization_config": GPTQ}, "weights", "int4_g128"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "weights", "fp8"),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, "layers", 32),
    ],
)
def test_what_it_leaves_out_and_what_it_adds(changed: dict[str, Any], field: str, value: Any, tmp_path: Path) -> None:
    assert getattr(model_in(written(tmp_path, LLAMA_3_8B | changed)), field) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it describes no model: Input data was truncated"),
        ("[1]", "it describes no model: Expected `object`, got `array`"),
        ("\xff", "it describes no model"),
        ("[" * 100_000, "it describes no model"),
        ('{"model_type": "llama"', "it describes no model"),
        (" " * (2**20 + 1), "it has more than 1,048,576 bytes"),
        (LLAMA_3_8B | {"model_type": "mixtral"}, "its model_type is 'mixtral'; known ones: llama, mistral"),
        ({}, "its model_type is ''; known ones: llama"),
        ({"model_type": "llama"}, "missing required field `num_hidden_layers`"),
        (LLAMA_3_8B | {"hidden_size": -4096}, "Expected `int` >= 1 - at `$.hidden_size`"),
        (LLAMA_3_8B | {"hidden_size": 10**30}, "Expected `int` <= 2147483647"),
        (LLAMA_3_8B | {"hidden_size": 4096.5}, "Expected `int`, got `float` - at `$.hidden_size`"),
        (LLAMA_3_8B | {"hidden_size": "4096"}, "Expected `int`, got `str`"),
        (LLAMA_3_8B | {"num_attention_heads": True}, "Expected `int`, got `bool`"),
        (LLAMA_3_8B | {"num_attention_heads": 30}, "hidden_size must be a multiple of num_attention_heads"),
        (LLAMA_3_8B | {"num_key_value_heads": 5}, "q_heads must be a multiple of kv_heads"),
        (LLAMA_3_8B | {"num_attention_heads": 2**30, "head_dim": 8}, "q_heads x head_dim must be at most"),
        (LLAMA_3_8B | {"torch_dtype": "float8"}, "its dtype is 'float8'; known ones: bfloat16"),
        (LLAMA_3_8B | {"model_type": "mistral", "sliding_window": 4096}, "its attention sees 4,096 tokens at most"),
        (LLAMA_3_8B | {"quantization_config": GPTQ | {"bits": 3}}, "its weights are quantised by 'gptq', 3 bits"),
        (LLAMA_3_8B | {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised by 'bitsandbytes'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_anything_else_is_one_sentence_that_names_the_file(text: Any, says: str, tmp_path: Path) -> None:
    content = text.encode("latin-1") if isinstance(text, str) else text
    with pytest.raises(InputError) as raised:
        model_in(written(tmp_path, content))
    sentence = str(raised.value)
    assert sentence.startswith(f"{tmp_path / 'config.json'}: ")
    assert says in sentence
    assert len(sentence) < 250 + len(str(tmp_path))
    assert "\n" not in sentence


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.json", Path("/dev/null")):
        with pytest.raises(InputError, match="there is no such file; a model is a folder"):
            model_in(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changed=st.dictionaries(st.sampled_from(sorted({*LLAMA_3_8B, "head_dim", "quantization_config"})), JSON))
def test_no_value_of_a_field_is_a_surprise(changed: dict[str, Any], tmp_path: Path) -> None:
    with suppress(InputError):
        assert isinstance(model_in(written(tmp_path, LLAMA_3_8B | changed)), Model)
