"""Text to tokens and back, from the vocabulary inside a GGUF file: byte-level BPE, and SentencePiece's BPE."""

import codecs
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from lab.inference.codec import Codec, any_of, require_text, tokenizers_package
from lab.inference.gguf_file import GgufFile
from sim.errors import InputError

# Token types of the GGUF specification: only normal ones are made of bytes and merges; user-defined ones are found in
# any text as they are written, unknown and control tokens only in what a chat template writes.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Metadata that say how text is changed before or behind this tokenizer, which does nothing of the kind.
_UNSUPPORTED = ("add_sep_token", "remove_extra_whitespaces", "normalizer.lowercase")
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
# The splitting pattern of Llama 3's and of Qwen2's tokenizer, which differ in how many digits stand together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space
_BYTE = re.compile("<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Pretokenizer:
    """How text is split before merging; `whole_words` takes a piece that is in the vocabulary without merging it."""

    split: Callable[[Any], Any]  # the `tokenizers` package -> its pre-tokenizer
    whole_words: bool = False
    bos: bool = False  # whether a text begins with the BOS token where the file does not say


def _words(digits: str) -> Callable[[Any], Any]:
    pattern = _WORDS.replace("DIGITS", digits)
    return lambda t: t.pre_tokenizers.Sequence(
        [
            t.pre_tokenizers.Split(t.Regex(pattern), "isolated"),
            t.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


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
        "llama-bpe": Pretokenizer(_words("{1,3}"), whole_words=True, bos=True),
        "qwen2": Pretokenizer(_words("")),
    }
)


_WHOLE = Pretokenizer(lambda _: None, bos=True)  # SentencePiece's: nothing is split


class Tokenizer(Codec):
    """The tokenizer of a GGUF file; raises InputError where it is of an unknown kind or inconsistent."""

    def __init__(self, file: GgufFile) -> None:
        tokenizers = tokenizers_package()
        kind = file.get("tokenizer.ggml.model", str)
        self._pieces = kind == "llama"  # SentencePiece's, whose words begin with a space
        name = file.get("tokenizer.ggml.pre", str, default="" if self._pieces else None)
        if not self._pieces and (kind != "gpt2" or name not in PRETOKENIZERS):
            known = ", ".join(f"gpt2/{p}" for p in PRETOKENIZERS)
            file.refuse(f"its tokenizer is {kind}/{name}; supported: {known}, llama")
        prefixed = file.get("tokenizer.ggml.add_space_prefix", bool, default=self._pieces)
        if prefixed and not self._pieces:
            file.refuse("its tokenizer asks for add_space_prefix, which only SentencePiece has")
        self._prefix = " " if prefixed else ""  # of a text, and of what follows a control token
        for flag in _UNSUPPORTED:
            if file.get(f"tokenizer.ggml.{flag}", bool, default=False):
                file.refuse(f"its tokenizer asks for {flag}, which is not supported")
        for key, value in file.metadata.items():
            prefix, _, asked = key.partition("tokenizer.ggml.")
            if not prefix and asked and not _READ.fullmatch(asked) and _says_something(value):
                file.refuse(f"its metadata ask for {key}, which this tokenizer does not know")
        pretokenizer = _WHOLE if self._pieces else PRETOKENIZERS[name]
        self.tokens: list[str] = file.get("tokenizer.ggml.tokens", list)
        self._types = _types(file, len(self.tokens))
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self._ids) != len(self.tokens):
            file.refuse("its vocabulary holds a token twice")
        merging = self._scored_pairs if self._pieces else self._byte_pairs
        self._bpe = tokenizers.Tokenizer(merging(file, tokenizers.models.BPE, pretokenizer.whole_words))
        self._bpe.pre_tokenizer = pretokenizer.split(tokenizers)
        self._user_defined = any_of(self._of_type(USER_DEFINED))
        self.control = any_of(self._of_type(CONTROL, UNKNOWN))
        self._bos = self._added(file, "bos", pretokenizer.bos)
        self._eos = self._added(file, "eos", False)
        last = len(self.tokens) - 1
        named = {file.integer(k, 0, last) for k in _end_keys(file)}
        self.ends = frozenset(named | {self._ids[e] for e in _ENDS if e in self._ids})
        self.template = file.get("tokenizer.chat_template", str, default="")
        special = {k: f"tokenizer.ggml.{k}_token_id" for k in _NAMES if f"tokenizer.ggml.{k}_token_id" in file.metadata}
        self.names = {f"{_NAMES[k]}_token": self.tokens[file.integer(key, 0, last)] for k, key in special.items()}

    def encode(self, text: str) -> list[int]:
        return [*self._bos, *self._plain(text), *self._eos]

    def marked(self, text: str, restored: Mapping[int, str]) -> list[int]:
        ids: list[int] = []
        for i, piece in enumerate(self.control.split(text)):
            ids += [self._ids[piece]] if i % 2 else self._plain(piece.translate(restored))
        return ids if tuple(ids[:1]) == self._bos else [*self._bos, *ids]

    def stream(self, after: Sequence[int] = ()) -> "TextStream":
        first = not any(self.bytes_of(token) for token in after[-1:])
        return TextStream(self, self._prefix if first else "")

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; none for an unknown, control or unused one."""
        text, kind = self.tokens[token], self._types[token]
        if kind == BYTE and (found := _BYTE.fullmatch(text)):
            return bytes.fromhex(found[1])
        if kind not in (NORMAL, USER_DEFINED):
            return b""
        if kind == USER_DEFINED:
            return text.encode()
        if self._pieces:
            return text.replace(SPACE, " ").encode()
        return bytes(_BYTES[c] for c in text) if _BYTES.keys() >= set(text) else text.encode()

    def _plain(self, text: str) -> list[int]:
        require_text(text)
        ids: list[int] = []
        spelled = b""
        prefix = self._prefix
        for i, piece in enumerate(self._user_defined.split(text)):
            if i % 2:
                ids.append(self._ids[piece])
            elif piece:
                piece = prefix + piece
                written = piece.replace(" ", SPACE) if self._pieces else piece
                ids += self._bpe.encode(written, add_special_tokens=False).ids
            prefix = ""
            spelled += piece.encode()
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

    def _scored_pairs(self, file: GgufFile, bpe: Callable, whole_words: bool) -> Any:
        """SentencePiece's merging: of two neighbours that make a token, those first whose token scores highest.

        What no token spells falls back to the tokens of its bytes.
        """
        scores = file.get("tokenizer.ggml.scores", np.ndarray)
        if len(scores) != len(self.tokens) or not np.isfinite(scores).all():
            file.refuse("its scores do not fit its vocabulary")
        kinds = {token: self._types[i] for token, i in self._ids.items()}
        normal = {token: i for token, i in self._ids.items() if kinds[token] == NORMAL}
        pairs = [
            (-scores[i], len(token[:at]), token[:at], token[at:])
            for token, i in normal.items()
            for at in range(1, len(token))
            if token[:at] in normal and token[at:] in normal
        ]
        spelling = normal | {token: i for token, i in self._ids.items() if kinds[token] == BYTE}
        merges = [(left, right) for _, _, left, right in sorted(pairs)]
        return bpe(spelling, merges, byte_fallback=True, ignore_merges=whole_words)

    def _of_type(self, *kinds: int) -> Iterable[str]:
        return (token for token, kind in zip(self.tokens, self._types, strict=True) if kind in kinds)

    def _added(self, file: GgufFile, name: str, default: bool) -> tuple[int, ...]:
        """The token of that name where the file says that texts begin or end with it."""
        wanted = file.get(f"tokenizer.ggml.add_{name}_token", bool, default=default)
        return (file.integer(f"tokenizer.ggml.{name}_token_id", 0, len(self.tokens) - 1),) if wanted else ()


class TextStream:
    """Bytes of successive tokens as text; a `prefix` that a text was given before it became tokens is taken away."""

    def __init__(self, tokenizer: Tokenizer, prefix: str) -> None:
        self._tokenizer = tokenizer
        self._prefix = prefix
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that this token completes."""
        text = self._decoder.decode(self._tokenizer.bytes_of(token))
        if text and self._prefix:
            text, self._prefix = text.removeprefix(self._prefix), ""
        return text

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


def _byte_characters() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself where printable Latin-1, else the next from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTES = _byte_characters()
