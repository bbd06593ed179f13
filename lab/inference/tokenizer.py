"""Text to tokens and back, from the vocabulary and merges inside a GGUF file: byte-level BPE."""

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lab.inference.gguf_file import GgufFile
from sim.errors import InputError

CONTROL, LITERAL = 3, 4  # token types of the GGUF specification: control tokens, and user-defined ones as plain text
# Control tokens that end a text, beside the end tokens that the metadata name.
_ENDS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>")
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # SmolLM2's own chat template
# The splitting pattern of Llama 3's tokenizer.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Pretokenizer:
    """How text is split before merging; `whole_words` takes a piece that is in the vocabulary without merging it."""

    split: Callable[[Any], Any]  # the `tokenizers` package -> its pre-tokenizer
    whole_words: bool = False
    bos: bool = False  # whether a text begins with the BOS token where the file does not say


PRETOKENIZERS = MappingProxyType(
    {
        "smollm": Pretokenizer(
            lambda t: t.pre_tokenizers.Sequence(
                [
                    t.pre_tokenizers.Digits(individual_digits=True),
                    t.pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            )
        ),
        "gpt-2": Pretokenizer(lambda t: t.pre_tokenizers.ByteLevel(add_prefix_space=False)),
        "llama-bpe": Pretokenizer(
            lambda t: t.pre_tokenizers.Sequence(
                [
                    t.pre_tokenizers.Split(t.Regex(_LLAMA3), "isolated"),
                    t.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            ),
            whole_words=True,
            bos=True,
        ),
    }
)


class Tokenizer:
    """The tokenizer of a GGUF file; raises InputError where it is of an unknown kind or inconsistent."""

    def __init__(self, file: GgufFile) -> None:
        tokenizers = _tokenizers_package()
        kind = file.get("tokenizer.ggml.model", str)
        name = file.get("tokenizer.ggml.pre", str, default="gpt-2")
        if kind != "gpt2" or name not in PRETOKENIZERS:
            known = ", ".join(f"gpt2/{p}" for p in PRETOKENIZERS)
            file.refuse(f"its tokenizer is {kind}/{name}; supported: {known}")
        pretokenizer = PRETOKENIZERS[name]
        self.tokens: list[str] = file.get("tokenizer.ggml.tokens", list)
        merges = [tuple(m.split(" ")) for m in file.get("tokenizer.ggml.merges", list)]
        self._types = [int(t) for t in file.metadata.get("tokenizer.ggml.token_type", [1] * len(self.tokens))]
        if len(self._types) != len(self.tokens) or any(len(m) != 2 for m in merges):
            file.refuse("its token types or merges do not fit its vocabulary")
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        try:
            model = tokenizers.models.BPE(self._ids, merges, ignore_merges=pretokenizer.whole_words)
        except Exception as error:  # the package raises bare exceptions: a merge of tokens outside the vocabulary
            file.refuse(f"its merges do not fit its vocabulary: {error}")
        self._bpe = tokenizers.Tokenizer(model)
        self._bpe.pre_tokenizer = pretokenizer.split(tokenizers)
        last = len(self.tokens) - 1
        has_bos = file.get("tokenizer.ggml.add_bos_token", bool, default=pretokenizer.bos)
        self._bos = (file.integer("tokenizer.ggml.bos_token_id", 0, last),) if has_bos else ()
        named = {file.integer(k, 0, last) for k in _end_keys(file)}
        self.ends = frozenset(named | {self._ids[e] for e in _ENDS if e in self._ids})

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text; what looks like a control token is still text. InputError for broken UTF-8."""
        return [*self._bos, *self._plain(text)]

    def chat(self, message: str) -> list[int]:
        """Tokens of one user message in ChatML, up to where the assistant answers; InputError without ChatML."""
        if not {"<|im_start|>", "<|im_end|>"} <= self._ids.keys():
            raise InputError("--chat needs a model with ChatML's <|im_start|> and <|im_end|>; this one has none")
        start, end = self._ids["<|im_start|>"], self._ids["<|im_end|>"]
        turns = (("system", SYSTEM), ("user", message))
        said = [t for role, text in turns for t in (start, *self._plain(f"{role}\n{text}"), end, *self._plain("\n"))]
        return [*self._bos, *said, start, *self._plain("assistant\n")]

    def stream(self) -> "TextStream":
        """A decoder that takes one token after the other."""
        return TextStream(self)

    def decode(self, ids: list[int]) -> str:
        """The text of tokens."""
        stream = self.stream()
        return "".join([*map(stream.feed, ids), stream.finish()])

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a control token."""
        text, kind = self.tokens[token], self._types[token]
        if kind == CONTROL:
            return b""
        if kind == LITERAL or not _BYTES.keys() >= set(text):
            return text.encode()
        return bytes(_BYTES[c] for c in text)

    def _plain(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError("the prompt is not valid UTF-8") from None
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids


class TextStream:
    """Bytes of successive tokens as text: a character that spans tokens appears with its last one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that this token completes."""
        return self._decoder.decode(self._tokenizer.bytes_of(token))

    def finish(self) -> str:
        """What is left: a replacement character where the last one never came whole."""
        return self._decoder.decode(b"", final=True)


def _end_keys(file: GgufFile) -> list[str]:
    names = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
    return [name for name in names if name in file.metadata]


def _byte_characters() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself where printable Latin-1, else the next from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTES = _byte_characters()


def _tokenizers_package() -> Any:
    try:
        import tokenizers  # an extra: only generation needs it
    except ImportError:
        raise InputError("generating text needs the package tokenizers: pip install 'kernel-lab[model]'") from None
    return tokenizers
