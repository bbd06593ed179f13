"""Text to tokens and back."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.inference.gguf_file import GgufFile
from lab.inference.tokenizer import PRETOKENIZERS, Tokenizer
from sim.errors import InputError
from tests.lab.inference import tiny

tokenizers = pytest.importorskip("tokenizers", reason="tokenizing needs the extra `model`")

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


def written(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Control tokens by name, all others as text."""
    return "".join(tokenizer.tokens[i] if i < 3 else tokenizer.decode([i]) for i in ids)


def test_chat_is_the_file_s_template_and_messages_stay_text(tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.chat(" Hi<|im_end|> the ")
    turns = "<|im_start|>user\nHi<|im_end|> the<|im_end|>\n<|im_start|>assistant\n"
    assert written(tiny_tokenizer, ids) == turns
    assert ids.count(2) == 1, "only the template ends turns"
    assert tiny_tokenizer.ends == {0, 2}


def other(tmp_path: Path, **metadata: Any) -> Tokenizer:
    """A tokenizer with some of the metadata replaced, a dot in a key written as two underscores."""
    keys = {f"tokenizer.{key.replace('__', '.')}": value for key, value in metadata.items()}
    return Tokenizer(GgufFile(tiny.write(tmp_path / "other.gguf", keys)))


def test_bos_and_a_model_without_template(tmp_path: Path) -> None:
    tokens = ["<s>", "</s>", "<pad>", *tiny.TOKENS[3:]]
    metadata = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": None,
    }
    tokenizer = Tokenizer(GgufFile(tiny.write(tmp_path / "other.gguf", metadata)))
    assert [tokens[i] for i in tokenizer.encode(" the 1234")] == ["<s>", "Ġthe", "Ġ", "1", "2", "3", "4"]
    assert tokenizer.ends == {1}
    with pytest.raises(InputError, match="a chat needs a model with a chat template"):
        tokenizer.chat("Hi")


def test_a_prompt_that_is_not_text(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="not valid UTF-8"):
        tiny_tokenizer.encode("\udcff")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}", "chat template cannot be used: TemplateSyntaxError"),
        ("{{ messages[3].content.upper() }}", "cannot be used: UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "cannot be used: SecurityError"),
        ("{{ messages.append(1) }}", "cannot be used: SecurityError"),
        ("{{ 1 / 0 }}", "cannot be used: ZeroDivisionError"),
        ("{{ raise_exception('no system turn') }}", "refuses the message: no system turn"),
    ],
)
def test_a_template_is_not_trusted(tmp_path: Path, template: str, says: str) -> None:
    tokenizer = other(tmp_path, chat_template=template)
    assert tokenizer.encode("in")
    with pytest.raises(InputError, match=says):
        tokenizer.chat("Hi")


def test_what_templates_may_use(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m | tojson }}{% break %}{% endfor %}"
        "{{ strftime_now('%%') }}{{ tools is defined }}"
    )
    tokenizer = other(
        tmp_path, chat_template=template, ggml__bos_token_id=0, ggml__add_bos_token=True, ggml__add_eos_token=True
    )
    said = '<|endoftext|>{"role": "user", "content": "<é>"}%False'
    assert written(tokenizer, tokenizer.chat("<é>")) == said, "one BOS, and no EOS before the answer"
    assert written(tokenizer, tokenizer.encode("in")) == "<|endoftext|>in<|im_end|>"


def test_only_normal_and_user_defined_tokens_are_found_in_text(tmp_path: Path) -> None:
    """The longest user-defined token wherever it begins, its characters no stand-ins of bytes; no other kind."""
    kinds = {
        "<think>": 4,
        "<think>é": 4,
        "ĠPAD": 4,
        "PAD": 3,
        "UNK": 2,
        "OLD": 5,
        "<0x0A>": 6,
        "the": 3,
        "Ġt": 1,
        "Ġthe": 1,
    }
    tokens = [*tiny.TOKENS[:259], "in", *kinds, "or", "he"]
    for pre in ("llama-bpe", "smollm"):
        tokenizer = other(
            tmp_path,
            ggml__pre=pre,
            ggml__bos_token_id=0,
            ggml__add_bos_token=False,
            ggml__tokens=tokens,
            ggml__token_type=[3] * 3 + [1] * 257 + [*kinds.values()] + [1, 1],
            ggml__merges=["i n", "o r", "h e", "t he", "Ġ t", "Ġt he"],
        )
        text = "in<think>éin<think>or PADUNKOLD<0x0A>the PADthe ĠPAD"
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        found = [tokens[i] for i in ids if len(tokens[i]) > 1]
        assert found == ["in", "<think>é", "in", "<think>", "or", "he", "he", "ĠPAD"]


def test_a_byte_that_no_token_spells(tmp_path: Path) -> None:
    tokens = [t if t != "x" else "no byte" for t in tiny.TOKENS]
    tokenizer = other(tmp_path, ggml__tokens=tokens)
    assert tokenizer.decode(tokenizer.encode("the")) == "the"
    with pytest.raises(InputError, match="a character that the model's vocabulary cannot spell"):
        tokenizer.encode("the x")


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("suppress_tokens", np.array([1, 2], np.int32), True),
        ("precompiled_charsmap", np.array([0], np.uint8), True),
        ("escape_whitespaces", True, True),
        ("escape_whitespaces", False, False),
        ("suppress_tokens", np.array([], np.int32), False),
        ("fim_pre_token_id", 1, False),
    ],
)
def test_what_else_the_metadata_ask_of_a_tokenizer_is_refused(
    key: str, value: Any, refused: bool, tmp_path: Path
) -> None:
    file = GgufFile(tiny.write(tmp_path / "other.gguf"))
    file.metadata[f"tokenizer.ggml.{key}"] = value
    if not refused:
        assert Tokenizer(file).encode("in")
        return
    with pytest.raises(InputError, match=f"ask for tokenizer.ggml.{key}, which this tokenizer does not know"):
        Tokenizer(file)


# A vocabulary as SentencePiece makes them: every character, pieces with the logarithm of how often they occur, bytes.
LETTERS = "▁aehlot"
PIECES = ["he", "ll", "▁a", "▁t", "lo", "hel", "▁the", "el", "ell", "hell", "hello", "▁▁", "at", "to"]
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{b:02X}>" for b in range(256)]
VOCABULARY = [*SPECIAL, *BYTES, *PIECES, *LETTERS, "<tool>"]
KINDS = [2, 3, 3, *[6] * 256, *[1] * (len(PIECES) + len(LETTERS)), 4]
SENTENCE = st.text(st.sampled_from("aehlot é\N{GRINNING FACE}<>s/0x"), max_size=30)


def sentence_piece(tmp_path: Path, seed: int = 0, **more: Any) -> Tokenizer:
    scores = -np.random.default_rng(seed).permutation(len(VOCABULARY)).astype(np.float32)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": VOCABULARY,
        "tokenizer.ggml.token_type": KINDS,
        "tokenizer.ggml.scores": [float(score) for score in scores],
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **more,
    }
    return Tokenizer(GgufFile(tiny.write(tmp_path / "pieces.gguf", metadata)))


def merged(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's algorithm: of all neighbours those whose piece scores highest become one, to the end."""
    parts = list(text)
    while True:
        pairs = [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not pairs:
            return parts
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@pytest.mark.parametrize("seed", range(4))
def test_sentence_piece_merges_by_score_and_spells_the_rest_in_bytes(tmp_path: Path, seed: int) -> None:
    tokenizer = sentence_piece(tmp_path, seed)
    scores = -np.random.default_rng(seed).permutation(len(VOCABULARY)).astype(np.float32)
    known = {t: float(scores[i]) for i, t in enumerate(VOCABULARY) if KINDS[i] == 1}

    @given(text=SENTENCE)
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert ids[0] == 1
        expected: list[str] = []
        for part in merged("▁" + text.replace(" ", "▁"), known) if text else []:
            expected += [part] if part in known else [f"<0x{b:02X}>" for b in part.encode()]
        assert [VOCABULARY[i] for i in ids[1:]] == expected

    check()


def test_sentence_piece_begins_with_a_space_and_knows_its_own_tokens(tmp_path: Path) -> None:
    tokenizer = sentence_piece(tmp_path)
    ids = tokenizer.encode("the<tool> at</s>")
    written = [VOCABULARY[i] for i in ids]
    assert written[:2] == ["<s>", "▁the"]
    assert "<tool>" in written
    assert "</s>" not in written, "a control token in a text is text"
    assert tokenizer.decode(ids) == "the<tool> at</s>"
    hello = tokenizer.encode("hello")[1:]
    assert tokenizer.decode(hello) == "hello"
    assert tokenizer.decode(hello, after=tokenizer.encode("a")) == " hello", "which goes on a text"
    assert tokenizer.decode(hello, after=[2]) == "hello"
    plain = sentence_piece(tmp_path, **{"tokenizer.ggml.add_space_prefix": False})
    assert [VOCABULARY[i] for i in plain.encode("the")][1] != "▁the"


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"scores": [0.0]}, "scores do not fit"),
        ({"scores": [float("nan")] * len(VOCABULARY)}, "scores do not fit"),
    ],
)
def test_scores_that_fit_no_vocabulary(tmp_path: Path, metadata: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        sentence_piece(tmp_path, **{f"tokenizer.ggml.{key}": value for key, value in metadata.items()})


@pytest.mark.parametrize(("pre", "digits"), [("llama-bpe", ["123", "45"]), ("qwen2", list("12345"))])
@given(text=TEXT)
def test_words_and_digits_are_split_as_the_library_splits_them(pre: str, digits: list[str], text: str) -> None:
    """The pattern that the model's own tokenizer.json holds, written here as it is there."""
    many = r"\p{N}{1,3}" if pre == "llama-bpe" else r"\p{N}"
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + many + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    ours = PRETOKENIZERS[pre].split(tokenizers)
    bytewise = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs = tokenizers.pre_tokenizers.Sequence([split, bytewise])
    assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)
    assert [piece for piece, _ in ours.pre_tokenize_str("12345")] == digits
