"""The reference: against an independent forward pass, and against itself in steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lab.inference import model as model_module
from lab.inference.checkpoint import Checkpoint, open_checkpoint
from lab.inference.chip import simulated
from lab.inference.config import LlamaConfig
from lab.inference.gguf_file import GgufFile
from lab.inference.model import Llama, attend
from lab.inference.reference import Reference
from lab.inference.step_weights import StepWeights
from lab.problems import Attention
from sim.errors import InputError
from sim.formats import encode
from sim.machine import A100, H100
from tests.lab.inference import tiny
from tests.lab.inference.textbook import rounding, textbook


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Checkpoint) -> Llama:
    return Llama(tiny_checkpoint, Reference())


def all_logits(llama: Llama, tokens: Sequence[int]) -> Any:
    return llama.logits(llama.forward(tokens, llama.new_cache(len(tokens))))


PROMPTS = st.lists(st.integers(0, 264), min_size=1, max_size=24)


@settings(max_examples=25)
@given(tokens=PROMPTS)
def test_logits_are_the_textbook_s(reference: Llama, tiny_checkpoint: Checkpoint, tokens: list[int]) -> None:
    expected = textbook(tiny_checkpoint, tokens)
    assert np.abs(all_logits(reference, tokens) - expected).max() <= rounding(reference.config, len(tokens), expected)


@settings(max_examples=25)
@given(tokens=PROMPTS, data=st.data())
def test_decoding_with_the_cache_equals_one_prefill(
    reference: Llama, tiny_config: LlamaConfig, tokens: list[int], data: st.DataObject
) -> None:
    whole = all_logits(reference, tokens)
    split = data.draw(st.integers(1, len(tokens)))
    cache = reference.new_cache(len(tokens))
    parts = [reference.logits(reference.forward(tokens[:split], cache))]
    parts += [reference.logits(reference.forward([token], cache)) for token in tokens[split:]]
    assert cache.length == len(tokens)
    assert np.abs(np.concatenate(parts) - whole).max() <= rounding(tiny_config, len(tokens), whole)


@settings(max_examples=25)
@given(tokens=PROMPTS, last=st.integers(0, 264))
def test_no_token_sees_a_later_one(reference: Llama, tokens: list[int], last: int) -> None:
    before = all_logits(reference, [*tokens, 0])[:-1]
    np.testing.assert_array_equal(all_logits(reference, [*tokens, last])[:-1], before)


@settings(max_examples=60)
@given(data=st.data())
def test_attention_is_within_the_problem_s_bound(data: st.DataObject) -> None:
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    m = data.draw(st.integers(1, 20))
    problem = Attention(1, kv_heads * group, kv_heads, 8, m, m + data.draw(st.integers(0, 20)), kv="fp32")
    arrays = problem.draw(np.random.default_rng(data.draw(st.integers(0, 99))))
    expected, bound = problem.reference(arrays)["y"]
    keys, values = arrays["k"].swapaxes(0, 1), arrays["v"].swapaxes(0, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "_QUERIES", data.draw(st.integers(1, 8)))
        y = attend(arrays["q"], keys, values)
    assert (np.abs(y.reshape(expected.shape) - expected) <= bound).all()


def test_limits_are_one_sentence(reference: Llama, tiny_config: LlamaConfig) -> None:
    with pytest.raises(InputError, match=f"take up to {tiny_config.context + 1} tokens; the model's context is"):
        reference.new_cache(tiny_config.context + 1)
    cache = reference.new_cache(2)
    reference.forward([1, 2], cache)
    with pytest.raises(InputError, match="2 tokens and 1 more do not fit"):
        reference.forward([3], cache)


def test_an_untied_head_and_rotary_divisors(tmp_path: Path, tiny_file: GgufFile, reference: Llama) -> None:
    tokens = [9, 50, 120, 7]
    head = tiny_file.rows("token_embd.weight")

    def logits(metadata: dict[str, Any], weights: dict[str, Any]) -> NDArray[np.float32]:
        checkpoint = open_checkpoint(tiny.write(tmp_path / "other.gguf", metadata, weights))
        return all_logits(Llama(checkpoint, Reference()), tokens)

    expected = all_logits(reference, tokens)
    np.testing.assert_array_equal(logits({}, {"output.weight": (head, "F32")}), expected)
    np.testing.assert_array_equal(logits({}, {"output.weight": (head * 2, "F32")}), expected * 2)
    half = tiny.HEAD_DIM // 2
    pairs = np.arange(half)
    divisors = (2.0 ** (pairs / half)).astype(np.float32)  # theta^(-i/h) / 2^(i/h) is (2 theta)^(-i/h)
    other_base = logits({"llama.rope.freq_base": 20000.0}, {})
    divided = logits({}, {"rope_freqs.weight": (divisors, "F32")})
    assert np.abs(divided - other_base).max() <= rounding(reference.config, len(tokens), expected)
    assert np.abs(divided - expected).max() > rounding(reference.config, len(tokens), expected)


def test_a_weight_too_large_for_bf16(tmp_path: Path) -> None:
    huge = np.full((tiny.FFN, tiny.D), np.finfo(np.float32).max)
    checkpoint = open_checkpoint(tiny.write(tmp_path / "huge.gguf", weights={"blk.1.ffn_up.weight": (huge, "F32")}))
    with pytest.raises(InputError, match=r"'blk.1.ffn_up.weight' holds infinities, NaN or what is too large for bf16"):
        StepWeights.load(checkpoint.config, checkpoint.file, simulated(H100))


def test_a_chip_without_a_kernel_for_groups_dequantises_them(tiny_checkpoint: Checkpoint) -> None:
    alone = {"output": "attn_output", "down": "ffn_down"}
    names = [(i, name, tensor) for i in range(tiny.LAYERS) for name, tensor in alone.items()]
    grouped = [one for one in names if tiny_checkpoint.file.groups(f"blk.{one[0]}.{one[2]}.weight")]
    assert grouped
    model = tiny_checkpoint.config, tiny_checkpoint.file
    with_kernel, without = (StepWeights.load(*model, simulated(chip)) for chip in (H100, A100))
    for i, name, tensor in grouped:
        assert with_kernel.matrices[f"layers.{i}.{name}"].weights == "int4_g32"
        assert without.matrices[f"layers.{i}.{name}"].weights == "bf16"
        values = tiny_checkpoint.file.rows(f"blk.{i}.{tensor}.weight")
        np.testing.assert_array_equal(without.arrays[f"layers.{i}.{name}.w"], encode(values, "bf16"))
