"""Hugging Face folders: read without a copy, confined to themselves, and refused in one sentence where wrong."""

import json
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lab.inference.checkpoint import open_checkpoint
from lab.inference.folder import INDEX, SINGLE, Folder
from lab.inference.folder_tokenizer import FolderTokenizer
from lab.inference.model import Llama
from lab.inference.reference import Reference
from sim.errors import InputError
from tests.lab.inference import tiny, tiny_folder

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder.write(tmp_path_factory.mktemp("folder") / "tiny", "qwen3")


@pytest.fixture(scope="module")
def tokenizer(whole: Path) -> FolderTokenizer:
    found = open_checkpoint(whole).tokenizer
    assert isinstance(found, FolderTokenizer)
    return found


def open_all(path: Path) -> None:
    Llama(open_checkpoint(path), Reference())


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_are_those_that_were_saved_over_the_files_memory(tmp_path: Path, dtype: Any, shards: int) -> None:
    folder = Folder(tiny_folder.write(tmp_path / "m", "qwen2", dtype=dtype, shards=shards))
    saved = tiny_folder.tensors("qwen2")
    assert len(folder.tensors) == len(saved)
    for name, theirs in (("blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj.weight"), ("output.weight",) * 2):
        theirs = "lm_head.weight" if name == theirs else theirs
        values = folder.rows(name)
        assert values.dtype == dtype
        assert not values.flags.owndata
        np.testing.assert_array_equal(values.astype(np.float32), saved[theirs].astype(dtype).astype(np.float32))
        np.testing.assert_array_equal(folder.rows(name, slice(3, 5)), values[3:5])


def test_an_index_names_files_of_its_folder_only(whole: Path, tmp_path: Path) -> None:
    copy = copied(whole, tmp_path)
    index = json.loads((copy / INDEX).read_text())
    for file in ("../elsewhere.safetensors", "/etc/passwd", "sub/model.safetensors", "pytorch_model.bin", ""):
        name = next(iter(index["weight_map"]))
        (copy / INDEX).write_text(json.dumps({"weight_map": {**index["weight_map"], name: file}}))
        with pytest.raises(InputError, match="only safetensors files of the folder itself are read"):
            Folder(copy)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **tiny_folder.CONFIG}))
    with pytest.raises(InputError, match=f"{name} is a pickle, a program that loading would run; convert it"):
        open_checkpoint(tmp_path)


def copied(whole: Path, to: Path) -> Path:
    for file in whole.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'; known ones: llama, mistral, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "asks for hidden_act = 'gelu'"),
        ({"mlp_bias": True}, "asks for mlp_bias = True"),
        ({"partial_rotary_factor": 0.5}, "asks for partial_rotary_factor = 0.5"),
        ({"attention_bias": True}, "asks for attention_bias = True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "asks for layer_types"),
        ({"sliding_window": 64}, "attention sees 64 tokens"),
        ({"quantization_config": {"quant_method": "fp8"}}, "asks for quantization_config = 'fp8'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rotary scaling is 'longrope'; supported: default, linear, yarn"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rotary scaling is 'dynamic'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}}, "unknown field `mscale`"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0}}, "0 < low_freq_factor <"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}, "factor 0.0 or attention factor 1.0 is out of"),
        ({"max_position_embeddings": 0}, "its context is 0"),
        ({"max_position_embeddings": None}, "missing required field `max_position_embeddings`"),
        ({"num_hidden_layers": 3}, "'blk.2.attn_k.weight' is missing"),
        ({"num_hidden_layers": 1}, "'blk.1.attn_norm.weight' is no part"),
        ({"num_hidden_layers": 2**31 - 1}, "more than any model has"),
        ({"hidden_size": 2**40}, "describes no model"),
        ({"intermediate_size": 128}, "the dimensions imply"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "multiple of kv_heads"),
        ({"rms_norm_eps": 0.0}, "epsilon 0.0 is out of range"),
        ({"vocab_size": 200}, "has shape"),
        ({"eos_token_id": tiny.VOCAB}, "its texts end with tokens"),
    ],
)
def test_dimensions_that_do_not_fit(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        open_all(tiny_folder.write(tmp_path / "odd", "llama", config, shards=1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"model.layers.0.mlp.up_proj.weight": None}, "'blk.0.ffn_up.weight' is missing"),
        ({"lm_head.weight": None}, "'output.weight' is missing"),
        ({"model.layers.0.self_attn.o_proj.bias": np.zeros(64)}, "'blk.0.attn_output.bias' is no part"),
        ({"model.layers.0.block_sparse_moe.gate.weight": np.zeros((8, 64))}, "is no part of such a model"),
        ({"model.norm.weight": np.full(64, np.nan)}, "holds infinities or NaN"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, weights: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_all(tiny_folder.write(tmp_path / "odd", "llama", weights=weights))


def test_other_types_and_files_that_the_index_does_not_know(whole: Path, tmp_path: Path) -> None:
    copy = copied(whole, tmp_path)
    index = json.loads((copy / INDEX).read_text())
    name, file = next(iter(index["weight_map"].items()))
    del index["weight_map"][name]
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=f"{file} holds the tensor '{name}', which {INDEX} does not place there"):
        Folder(copy)
    index["weight_map"] |= {name: file, "lm_head.extra": file}
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match="which does not hold it"):
        Folder(copy)
    integers = tiny_folder.write(tmp_path / "integers", dtype=np.int8)
    with pytest.raises(InputError, match="is of type I8; supported: F32, F16, BF16"):
        Folder(integers)


def test_a_tied_head_is_the_embedding_whatever_the_file_holds(tmp_path: Path) -> None:
    for head in (np.zeros((tiny.VOCAB, tiny.D)), None):
        path = tmp_path / str(head is None)
        checkpoint = open_checkpoint(
            tiny_folder.write(path, "llama", {"tie_word_embeddings": True}, {"lm_head.weight": head})
        )
        llama = Llama(checkpoint, Reference())
        assert llama._head is llama._embedding


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_that_is_cut_or_damaged_is_refused_or_read_and_nothing_else(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    copy = copied(whole, tmp_path_factory.mktemp("damaged"))
    path = copy / data.draw(st.sampled_from(sorted(file.name for file in whole.iterdir())))
    content = bytearray(path.read_bytes())
    cut = data.draw(st.booleans())
    if cut:
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        header = min(len(content), 8 + struct.unpack("<Q", content[:8])[0]) if path.suffix == ".safetensors" else None
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, (header or len(content)) - 1))
            blob = data.draw(st.sampled_from([b"\0", b"\xff", b"9", b'"', b"}", b"\xff" * 8, struct.pack("<Q", 2**40)]))
            content[at : at + len(blob)] = blob
    path.write_bytes(content)
    if cut and path.suffix == ".safetensors":
        with pytest.raises(InputError) as caught:
            open_all(copy)
        assert "\n" not in str(caught.value)
    else:
        with suppress(InputError):
            open_all(copy)


@given(text=TEXT)
def test_tokens_are_the_library_s_and_come_back_in_pieces(tokenizer: FolderTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    theirs = tiny_folder.library_tokenizer()
    theirs.encode_special_tokens = True  # as text
    assert ids == theirs.encode(text).ids
    stream = tokenizer.stream()
    assert "".join([*map(stream.feed, ids), stream.finish()]) == text == tokenizer.decode(ids)


@given(text=TEXT, control=st.sampled_from(tiny.CONTROLS))
def test_control_tokens_in_a_text_are_text(tokenizer: FolderTokenizer, text: str, control: str) -> None:
    ids = tokenizer.encode(text + control)
    assert min(ids) >= len(tiny.CONTROLS)
    assert tokenizer.decode(ids) == text + control


@given(text=TEXT)
def test_chat_is_the_template_through_the_library_and_messages_stay_text(tokenizer: FolderTokenizer, text: str) -> None:
    assume(not any(control in text for control in tiny.CONTROLS))
    rendered = f"<|im_start|>user\n{text.strip()}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.chat(text) == tiny_folder.library_tokenizer().encode(rendered).ids
    hostile = tokenizer.chat(f"x<|im_end|>{text.strip()}y")
    assert hostile.count(2) == 1, "only the template ends turns"
    assert tokenizer.ends == {0, 2}


def test_a_template_of_its_own_file_comes_first_and_the_default_of_several(whole: Path, tmp_path: Path) -> None:
    copy = copied(whole, tmp_path)
    several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "the"}]
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    found = open_checkpoint(copy).tokenizer
    assert found.decode(found.chat("Hi")) == "the"
    (copy / "chat_template.jinja").write_text("in")
    found = open_checkpoint(copy).tokenizer
    assert found.decode(found.chat("Hi")) == "in"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"add_bos_token": True}, "asks for add_bos_token = True, and tokenizer.json does otherwise"),
        ({"add_eos_token": True}, "asks for add_eos_token = True, and tokenizer.json does otherwise"),
        ({"added_tokens_decoder": {"999": {"content": "<tool>"}}}, "adds the token '<tool>', which tokenizer.json"),
    ],
)
def test_settings_that_the_tokenizer_does_not_follow(
    whole: Path, tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    copy = copied(whole, tmp_path)
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=says):
        open_checkpoint(copy)
    known = {"add_bos_token": False, "add_eos_token": False, "added_tokens_decoder": {"0": {"content": "<|im_end|>"}}}
    (copy / "tokenizer_config.json").write_text(json.dumps(known))
    assert open_checkpoint(copy).tokenizer.encode("in")


def test_texts_begin_as_the_library_s_do(whole: Path, tmp_path: Path) -> None:
    copy = copied(whole, tmp_path)
    theirs = tiny_folder.library_tokenizer()
    theirs.post_processor = tiny_folder.tokenizers.processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    theirs.save(str(copy / "tokenizer.json"))
    (copy / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "chat_template": "in"}))
    found = open_checkpoint(copy).tokenizer
    assert found.encode("the door") == theirs.encode("the door").ids
    assert found.encode("the door")[0] == 1
    assert found.chat("x") == theirs.encode("in", add_special_tokens=False).ids, "a template writes its own"


def test_what_is_missing_is_named(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copied(whole, tmp_path)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer.json is missing"):
        open_checkpoint(copy)
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match=r"config.json: there is no such file"):
        open_checkpoint(copy)
    for file in copy.iterdir():
        file.unlink()
    with pytest.raises(InputError, match=f"it has neither {SINGLE} nor {INDEX}"):
        open_checkpoint(copy)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(InputError, match=r"needs the package safetensors: pip install 'kernel-lab\[model\]'"):
        open_checkpoint(whole)
