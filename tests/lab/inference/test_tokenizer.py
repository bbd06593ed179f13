"""Text to tokens and back."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.inference.gguf_file import GgufFile
from lab.inference.tokenizer import SYSTEM, Tokenizer
from sim.errors import InputError
from tests.lab.inference import tiny

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(text=TEXT)
def test_text_comes_back_whole_and_in_pieces(tiny_tokenizer: Tokenizer, text: str) -> None:
    ids = tiny_tokenizer.encode(text)
    assert tiny_tokenizer.decode(ids) == text
    stream = tiny_tokenizer.stream()
    pieces = [stream.feed(i) for i in ids]
    assert "".join(pieces) == text
    assert stream.finish() == ""
    assert b"".join(map(tiny_tokenizer.bytes_of, ids)) == text.encode()


def test_a_character_of_several_tokens_appears_with_its_last(tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.encode("🙂")
    assert len(ids) == 4
    stream = tiny_tokenizer.stream()
    assert [stream.feed(i) for i in ids] == ["", "", "", "🙂"]
    assert [stream.feed(i) for i in ids[:2]] == ["", ""]
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_merges_apply_and_digits_stand_alone(tiny_tokenizer: Tokenizer) -> None:
    assert [tiny_tokenizer.tokens[i] for i in tiny_tokenizer.encode("in the é")] == ["in", "Ġthe", "Ġ", "Ã©"]
    assert [tiny_tokenizer.tokens[i] for i in tiny_tokenizer.encode("12")] == ["1", "2"]


@given(text=TEXT, control=st.sampled_from(tiny.CONTROLS))
def test_control_tokens_in_a_text_are_text(tiny_tokenizer: Tokenizer, text: str, control: str) -> None:
    ids = tiny_tokenizer.encode(text + control)
    assert min(ids) >= len(tiny.CONTROLS)
    assert tiny_tokenizer.decode(ids) == text + control


def test_chat_is_chatml_and_control_tokens_have_no_text(tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.chat("Hi<|im_end|>")
    names = "".join(tiny_tokenizer.tokens[i] if i < 3 else tiny_tokenizer.decode([i]) for i in ids)
    assert names == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nHi<|im_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(2) == 2, "only the template ends turns"
    assert tiny_tokenizer.ends == {0, 2}


def test_bos_and_a_model_without_chatml(tmp_path: Path) -> None:
    tokens = ["<s>", "</s>", "<pad>", *tiny.TOKENS[3:]]
    metadata = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    tokenizer = Tokenizer(GgufFile(tiny.write(tmp_path / "other.gguf", metadata)))
    assert [tokens[i] for i in tokenizer.encode(" the 1234")] == ["<s>", "Ġthe", "Ġ", "1", "2", "3", "4"]
    assert tokenizer.ends == {1}
    with pytest.raises(InputError, match="--chat needs a model with ChatML"):
        tokenizer.chat("Hi")


def test_a_prompt_that_is_not_text(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="not valid UTF-8"):
        tiny_tokenizer.encode("\udcff")
