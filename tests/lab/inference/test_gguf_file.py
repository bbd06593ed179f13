"""GGUF files: read as the reference reader reads them, and refused in one sentence where anything is wrong."""

import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.inference import gguf_file
from lab.inference.checkpoint import open_checkpoint
from lab.inference.chip import simulated
from lab.inference.gguf_file import GgufFile
from lab.inference.model import Llama
from lab.inference.reference import Reference
from lab.inference.step_weights import StepWeights
from lab.inference.tokenizer import Tokenizer
from sim import int4
from sim.errors import InputError
from sim.formats import FORMATS, decode
from sim.machine import H100
from tests.lab.inference import tiny


def open_all(path: Path) -> None:
    """Everything that happens to a file before the first token."""
    Llama(open_checkpoint(path), Reference())


def test_metadata_and_tensors_are_those_of_the_reference_reader(tiny_path: Path, tiny_file: GgufFile) -> None:
    expected = tiny.gguf.GGUFReader(tiny_path)
    fields = {key: f for key, f in expected.fields.items() if not key.startswith("GGUF.")}
    assert tiny_file.metadata.keys() == fields.keys()
    for key, field in fields.items():
        assert list(np.atleast_1d(tiny_file.metadata[key])) == list(np.atleast_1d(field.contents())), key
    assert tiny_file.tensors.keys() == {t.name for t in expected.tensors}
    for tensor in expected.tensors:
        values = tiny.gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(tiny_file.rows(tensor.name), values.reshape(tensor.shape[::-1]))


def test_some_rows_are_those_rows_of_all(tiny_file: GgufFile) -> None:
    every = tiny_file.rows("token_embd.weight")
    np.testing.assert_array_equal(tiny_file.rows("token_embd.weight", [5, 0, 5]), every[[5, 0, 5]])


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_converted_on_load_to_a_format_with_kernels(tmp_path: Path, kind: str) -> None:
    """Q4_K to int4 groups, whose bound `from_gguf_k` states; all others to bf16, within its unit roundoff."""
    number = tiny.gguf.GGMLQuantizationType[kind]
    block, nbytes = tiny.gguf.GGML_QUANT_SIZES[number]
    raw = np.random.default_rng(0).integers(0, 256, (tiny.D, nbytes), np.uint8)
    halves = {"Q2_K": (80, 84), "Q3_K": (108, 110), "Q4_K": (0, 4), "Q5_K": (0, 4), "Q6_K": (208, 210)}[kind]
    raw[:, slice(*halves)] = np.full((tiny.D, (halves[1] - halves[0]) // 2), 0.01, np.float16).view(np.uint8)
    keys = {"llama.feed_forward_length": block}
    wide = {
        f"blk.{i}.ffn_{name}.weight": (np.zeros((block, tiny.D), np.float32), "F32")
        for i in range(2)
        for name in ("gate", "up")
    }
    down = {f"blk.{i}.ffn_down.weight": (raw, kind) for i in range(2)}
    checkpoint = open_checkpoint(tiny.write(tmp_path / "k.gguf", keys, {**wide, **down}))
    weights = StepWeights.load(checkpoint.config, checkpoint.file, simulated(H100))
    exact = checkpoint.file.rows("blk.1.ffn_down.weight")
    assert np.abs(exact).max() > 0.01
    if kind == "Q4_K":
        assert weights.matrices["layers.1.down"].weights == "int4_g32"
        packed = [weights.arrays[f"layers.1.down.{part}"] for part in ("w", "w_scale")]
        groups = int4.unpack(*packed, tiny.D, block, 32)
        np.testing.assert_array_equal(groups.values, int4.from_gguf_k(raw.reshape(tiny.D, -1, nbytes)).values)
    else:
        assert weights.matrices["layers.1.down"].weights == "bf16"
        found = decode(weights.arrays["layers.1.down.w"], "bf16")
        assert (np.abs(found - exact) <= FORMATS["bf16"].unit_roundoff * np.abs(exact)).all()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"])
def test_other_types_become_what_the_page_says(tmp_path: Path, kind: str) -> None:
    """Their own groups exactly, or bf16: exactly from BF16, within its unit roundoff from all others."""
    values = np.random.default_rng(1).standard_normal((tiny.D, 96)).astype(np.float32)
    weights = {f"blk.{i}.ffn_down.weight": (values, kind) for i in range(2)}
    checkpoint = open_checkpoint(tiny.write(tmp_path / "one.gguf", weights=weights))
    loaded = StepWeights.load(checkpoint.config, checkpoint.file, simulated(H100))
    exact = checkpoint.file.rows("blk.1.ffn_down.weight").astype(np.float32)
    w = loaded.arrays["layers.1.down.w"]
    if kind in ("Q4_0", "Q4_1"):
        problem = loaded.matrices["layers.1.down"]
        groups = int4.unpack(w, loaded.arrays["layers.1.down.w_scale"], tiny.D, 96, 32, problem.zero_points)
        np.testing.assert_array_equal(groups.values, exact)
    elif kind == "BF16":
        np.testing.assert_array_equal(decode(w, "bf16"), exact)
    else:
        off = np.abs(decode(w, "bf16") - exact)
        assert off.max() > 0
        assert (off <= FORMATS["bf16"].unit_roundoff * np.abs(exact)).all()


@settings(max_examples=150)
@given(data=st.data())
def test_a_file_cut_anywhere_is_one_sentence(tiny_path: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    whole = tiny_path.read_bytes()
    cut = tmp_path_factory.getbasetemp() / "cut.gguf"
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 33))])  # the writer pads the last tensor to 32 bytes
    with pytest.raises(InputError) as caught:
        open_all(cut)
    assert "\n" not in str(caught.value)


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_and_nothing_else(
    tiny_path: Path, tmp_path_factory: Any, data: st.DataObject
) -> None:
    content = bytearray(tiny_path.read_bytes())
    directory = content.index(b"token_embd.weight") + 4000  # metadata and tensor directory end before
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, directory))
        blob = data.draw(
            st.sampled_from([b"\0", b"\xff", b"\x80", b"\xff" * 8, struct.pack("<Q", 2**40), b"\x09\0\0\0"])
        )
        content[at : at + len(blob)] = blob
    damaged = tmp_path_factory.getbasetemp() / "damaged.gguf"
    damaged.write_bytes(content)
    with suppress(InputError):
        open_all(damaged)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read"),
        (b"PK\3\4" + bytes(100), "does not begin with the bytes GGUF"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(100), "version 1; versions 2 and 3"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(100), "versions 2 and 3 little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1) + bytes(100), "more than fit in the file"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + bytes(13), "more than fit in the file"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + bytes(100), "is truncated"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2) + b"\xff\xfe" + bytes(100), "is not UTF-8"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 77) + bytes(100), "has type 77"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 1) + bytes(99), "nested array"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 8, 2**50), "announces"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 4, 2**61), "is truncated"),
    ],
)
def test_foreign_and_hostile_headers(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "foreign.gguf"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        GgufFile(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            GgufFile(path)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"llama.block_count": None}, "'llama.block_count' is missing"),
        ({"llama.block_count": "two"}, "holds str, not int"),
        ({"llama.block_count": 3}, "'blk.2.attn_k.weight' is missing"),
        ({"llama.block_count": 1}, "'blk.1.attn_norm.weight' is no part of such a model"),
        ({"llama.block_count": 0}, "from 1 to 1024"),
        ({"llama.feed_forward_length": 128}, "the dimensions imply"),
        ({"llama.attention.head_count": 6, "llama.attention.head_count_kv": 4}, "cannot share"),
        ({"llama.rope.dimension_count": 8}, "is 8 and head_dim 64; both must be the same"),
        ({"llama.rope.scaling.type": "longrope"}, "rotary scaling is 'longrope'; supported: none, linear, yarn"),
        ({"llama.rope.scaling.factor": -2.0}, "scaling factor -2.0 or attention factor 1.0 is out of range"),
        ({"llama.rope.scaling.attn_factor": float("inf")}, "attention factor inf is out of range"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 0.5}, "YaRN needs a factor of at least 1"),
        ({"llama.expert_count": 8}, "its metadata ask for llama.expert_count = 8"),
        ({"llama.attention.sliding_window": 64}, "ask for llama.attention.sliding_window = 64"),
        ({"llama.logit_scale": 0.5}, "ask for llama.logit_scale = 0.5"),
        ({"split.count": 3, "split.no": 1}, "part 2 of 3 of a split model; join them with"),
        ({"general.type": "adapter"}, "its type 'adapter'; only models of llama, qwen2, qwen3"),
        ({"general.quantization_version": 1}, "blocks are of version 1"),
        ({"llama.rope.freq_base": float("nan")}, "out of range"),
        ({"llama.vocab_size": tiny.VOCAB + 1}, f"has {tiny.VOCAB} tokens and its model {tiny.VOCAB + 1}"),
        ({"tokenizer.ggml.tokens": None}, "'tokenizer.ggml.tokens' is missing"),
        ({"tokenizer.ggml.model": "llama"}, "'tokenizer.ggml.scores' is missing"),
        ({"tokenizer.ggml.pre": "dbrx"}, "tokenizer is gpt2/dbrx; supported: gpt2/smollm"),
        ({"tokenizer.ggml.pre": None}, "'tokenizer.ggml.pre' is missing"),
        ({"tokenizer.ggml.add_space_prefix": True}, "its tokenizer asks for add_space_prefix"),
        ({"tokenizer.ggml.tokens": ["a"] * tiny.VOCAB}, "holds a token twice"),
        ({"tokenizer.ggml.merges": ["Ġ nowhere"]}, "merges do not fit"),
        ({"tokenizer.ggml.merges": ["abc"]}, "merges do not fit"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "token types do not fit"),
        ({"tokenizer.ggml.token_type": [7] * tiny.VOCAB}, "token types do not fit"),
        ({"tokenizer.ggml.token_type": "normal"}, "holds str, not ndarray"),
        ({"tokenizer.ggml.eos_token_id": tiny.VOCAB}, "eos_token_id must be from 0 to"),
    ],
)
def test_inconsistent_metadata(tmp_path: Path, metadata: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_all(tiny.write(tmp_path / "odd.gguf", metadata))


def test_another_architecture(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="architecture is 'mamba' and its type 'model'; only models of llama, qwen2, qwen3"
    ):
        open_all(tiny.write(tmp_path / "odd.gguf", architecture="mamba"))


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"blk.0.ffn_up.weight": None}, "'blk.0.ffn_up.weight' is missing"),
        ({"blk.0.attn_q.bias": (np.zeros(64, np.float32), "F32")}, "no part of such a model"),
        ({"blk.0.attn_q.weight": (np.zeros((32, 64), np.float32), "F32")}, "the dimensions imply"),
        ({"output_norm.weight": (np.full(64, np.nan, np.float32), "F32")}, "holds infinities or NaN"),
        ({"blk.0.ffn_up.weight": (np.full((96, 64), np.inf, np.float32), "F16")}, "holds infinities or NaN"),
        ({"blk.0.ffn_up.weight": (np.zeros((96, 256), np.float32), "TQ2_0")}, "quantisation type 35; supported: F32"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, weights: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_all(tiny.write(tmp_path / "odd.gguf", weights=weights))


def test_a_tensor_that_would_lie_outside_the_file(tiny_path: Path, tmp_path: Path) -> None:
    content = bytearray(tiny_path.read_bytes())
    name = b"output_norm.weight"
    offset = content.index(name) + len(name) + 4 + 8 + 4  # behind dimensions, one extent, type
    for wrong in (2**40, 1):
        content[offset : offset + 8] = struct.pack("<Q", wrong)
        path = tmp_path / "outside.gguf"
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"at offset {wrong:,}"):
            GgufFile(path)


def test_a_missing_extra_is_named(tiny_path: Path, tiny_file: GgufFile, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf_file._gguf_package.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"needs the package gguf: pip install 'kernel-lab\[model\]'"):
        GgufFile(tiny_path)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InputError, match=r"needs the package jinja2: pip install 'kernel-lab\[model\]'"):
        Tokenizer(tiny_file).chat("Hi")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"needs the package tokenizers: pip install 'kernel-lab\[model\]'"):
        Tokenizer(tiny_file)
