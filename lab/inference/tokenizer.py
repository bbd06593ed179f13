"""Text to tokens and back, from the vocabulary and merges inside a GGUF file: byte-level BPE."""

import codecs
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from lab.inference.chat_template import render
from lab.inference.gguf_file import GgufFile
from sim.errors import InputError

# Token types of the GGUF specification: only normal ones are made of bytes and merges; user-defined ones are found in
# any text as they are written, unknown and control tokens only in what a chat template writes.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Metadata that say how text is changed before or behind this tokenizer, which does nothing of the kind.
_UNSUPPORTED = ("add_space_prefix", "add_sep_token", "remove_extra_whitespaces", "normalizer.lowercase")
# Metadata that are read, or say nothing about which tokens a text becomes and which may follow it, by their names
# behind "tokenizer.ggml."; of all others a falsehood, a zero, an empty list and an empty text leave these as they are.
_READ = re.compile(
    r"model|pre|tokens|token_type|merges|scores|token_type_count|add_[be]os_token|\w+_token_ids?|"
    r"add_space_prefix|add_sep_token|remove_extra_whitespaces|normalizer\.lowercase"
)
# Special tokens as chat templates call them, by their name in the metadata.
_NAMES = MappingProxyType(
    {"bos": "bos", "eos": "eos", "unknown": "unk", "seperator": "sep", "padding": "pad", "cls": "cls", "mask": "mask"}
)
# Control tokens that end a text, beside the end tokens that the metadata name.
_ENDS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>")
_STAND_INS = range(0xF0000, 0xFFFFE)  # characters for private use, in no text of a model
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
        name = file.get("tokenizer.ggml.pre", str)
        if kind != "gpt2" or name not in PRETOKENIZERS:
            known = ", ".join(f"gpt2/{p}" for p in PRETOKENIZERS)
            file.refuse(f"its tokenizer is {kind}/{name}; supported: {known}")
        for flag in _UNSUPPORTED:
            if file.get(f"tokenizer.ggml.{flag}", bool, default=False):
                file.refuse(f"its tokenizer asks for {flag}, which is not supported")
        for key, value in file.metadata.items():
            prefix, _, asked = key.partition("tokenizer.ggml.")
            if not prefix and asked and not _READ.fullmatch(asked) and _says_something(value):
                file.refuse(f"its metadata ask for {key}, which this tokenizer does not know")
        pretokenizer = PRETOKENIZERS[name]
        self.tokens: list[str] = file.get("tokenizer.ggml.tokens", list)
        self._types = _types(file, len(self.tokens))
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self._ids) != len(self.tokens):
            file.refuse("its vocabulary holds a token twice")
        self._bpe = tokenizers.Tokenizer(self._byte_pairs(file, tokenizers.models.BPE, pretokenizer.whole_words))
        self._bpe.pre_tokenizer = pretokenizer.split(tokenizers)
        self._user_defined = _any_of(self._of_type(USER_DEFINED))
        self._control = _any_of(self._of_type(CONTROL, UNKNOWN))
        self._bos = self._added(file, "bos", pretokenizer.bos)
        self._eos = self._added(file, "eos", False)
        last = len(self.tokens) - 1
        named = {file.integer(k, 0, last) for k in _end_keys(file)}
        self.ends = frozenset(named | {self._ids[e] for e in _ENDS if e in self._ids})
        self._template: str = file.get("tokenizer.chat_template", str, default="")
        special = {k: f"tokenizer.ggml.{k}_token_id" for k in _NAMES if f"tokenizer.ggml.{k}_token_id" in file.metadata}
        self._names = {f"{_NAMES[k]}_token": self.tokens[file.integer(key, 0, last)] for k, key in special.items()}

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text; what looks like a control token is still text.

        Raises InputError for broken UTF-8, and for text that the vocabulary cannot spell.
        """
        return [*self._bos, *self._plain(text), *self._eos]

    def chat(self, message: str) -> list[int]:
        """Tokens of one user message in the model's chat template, up to where the assistant answers.

        What looks like a control token in the message is still text. Raises InputError as `encode` does, and where the
        model has no template or it cannot be used.
        """
        if not self._template:
            raise InputError("--chat needs a model with a chat template; this file holds none")
        free = (c for c in map(chr, _STAND_INS) if c not in message and c not in self._template)
        stand_ins: dict[str, str] = {}
        disguised = self._control.sub(lambda found: stand_ins.setdefault(found[0], next(free)), message)
        rendered = render(self._template, disguised, self._names)
        restored = {ord(c): text for text, c in stand_ins.items()}
        ids: list[int] = []
        for i, piece in enumerate(self._control.split(rendered)):
            ids += [self._ids[piece]] if i % 2 else self._plain(piece.translate(restored))
        return ids if tuple(ids[:1]) == self._bos else [*self._bos, *ids]

    def stream(self) -> "TextStream":
        """A decoder that takes one token after the other."""
        return TextStream(self)

    def decode(self, ids: list[int]) -> str:
        """The text of tokens."""
        stream = self.stream()
        return "".join([*map(stream.feed, ids), stream.finish()])

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; none for one that is neither normal nor user-defined."""
        text, kind = self.tokens[token], self._types[token]
        if kind not in (NORMAL, USER_DEFINED):
            return b""
        if kind == USER_DEFINED or not _BYTES.keys() >= set(text):
            return text.encode()
        return bytes(_BYTES[c] for c in text)

    def _plain(self, text: str) -> list[int]:
        try:
            spelled = text.encode()
        except UnicodeEncodeError:
            raise InputError("the prompt is not valid UTF-8") from None
        ids: list[int] = []
        for i, piece in enumerate(self._user_defined.split(text)):
            ids += [self._ids[piece]] if i % 2 else self._bpe.encode(piece, add_special_tokens=False).ids
        if b"".join(map(self.bytes_of, ids)) != spelled:
            raise InputError("the prompt holds a character that the model's vocabulary cannot spell")
        return ids

    def _byte_pairs(self, file: GgufFile, bpe: Callable, whole_words: bool) -> Any:
        """The merging of normal tokens; a merge that makes or needs another kind never applies to text."""
        normal = {token: i for token, i in self._ids.items() if self._types[i] == NORMAL}
        merges = [tuple(m.split(" ")) for m in file.get("tokenizer.ggml.merges", list)]
        for merge in merges:
            if len(merge) != 2 or not {*merge, "".join(merge)} <= self._ids.keys():
                file.refuse(f"its merges do not fit its vocabulary: {' '.join(merge)!r}")
        try:
            return bpe(normal, [m for m in merges if {*m, "".join(m)} <= normal.keys()], ignore_merges=whole_words)
        except Exception as error:  # the package raises bare exceptions
            file.refuse(f"its merges do not fit its vocabulary: {error}")

    def _of_type(self, *kinds: int) -> Iterable[str]:
        return (token for token, kind in zip(self.tokens, self._types, strict=True) if kind in kinds)

    def _added(self, file: GgufFile, name: str, default: bool) -> tuple[int, ...]:
        """The token of that name where the file says that texts begin or end with it."""
        wanted = file.get(f"tokenizer.ggml.add_{name}_token", bool, default=default)
        return (file.integer(f"tokenizer.ggml.{name}_token_id", 0, len(self.tokens) - 1),) if wanted else ()


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


def _says_something(value: Any) -> bool:
    return len(value) > 0 if isinstance(value, str | list | np.ndarray) else bool(value)


def _end_keys(file: GgufFile) -> list[str]:
    names = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
    return [name for name in names if name in file.metadata]


def _types(file: GgufFile, count: int) -> list[int]:
    """The type of each token; all are normal where the file does not say."""
    types = file.get("tokenizer.ggml.token_type", np.ndarray, default=np.full(count, NORMAL))
    if len(types) != count or not np.isin(types, range(NORMAL, BYTE + 1)).all():
        file.refuse("its token types do not fit its vocabulary")
    return [int(kind) for kind in types]


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """What matches any of them, the longest where several begin; as a group, so that `split` keeps it."""
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else "((?!))")


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
