"""The tokenizer of a Hugging Face folder: its tokenizer.json in the library that it is made for."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lab.inference.codec import Codec, any_of, require_text, tokenizers_package
from lab.inference.folder import Folder
from lab.problems.hugging_face import FILE as CONFIG
from sim.errors import InputError

FILE, SETTINGS, DEFAULTS, TEMPLATE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
_MOST_BYTES = 2**20  # of a template


class _Token(msgspec.Struct):
    content: str


class _Named(msgspec.Struct):
    name: str
    template: str


class _Settings(msgspec.Struct):
    """What is read of tokenizer_config.json; special tokens are texts, or objects with their content."""

    chat_template: str | list[_Named] | None = None
    bos_token: str | _Token | None = None
    eos_token: str | _Token | None = None
    unk_token: str | _Token | None = None
    pad_token: str | _Token | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    added_tokens_decoder: dict[str, _Token] = {}


class _Ends(msgspec.Struct):
    eos_token_id: int | list[int] | None = None


class FolderTokenizer(Codec):
    """The tokenizer of a folder, of at most `vocab` tokens; raises InputError where it is missing or inconsistent."""

    def __init__(self, folder: Folder, vocab: int) -> None:
        self._package = tokenizers_package()
        if not (folder.path / FILE).is_file():
            folder.refuse(f"{FILE} is missing")
        try:
            self._tokenizer = self._package.Tokenizer.from_file(str(folder.path / FILE))
        except Exception as error:  # the package raises bare exceptions
            folder.refuse(f"{FILE} cannot be used: {error}")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        if max(ids, default=-1) >= vocab:
            folder.refuse(f"its tokenizer has token {max(ids)}, and its model {vocab} tokens")
        added = self._tokenizer.get_added_tokens_decoder()
        self.control = any_of(token.content for token in added.values() if token.special)
        settings: _Settings = folder.json(SETTINGS, _Settings) or _Settings()
        self.names = {name: text for name in _NAMES if (text := _text(getattr(settings, name)))}
        self._require_same(folder, settings)
        self.template = _template(folder, settings)
        self.ends = frozenset(self._ends(folder, vocab))

    def encode(self, text: str) -> list[int]:
        require_text(text)
        return self._ids(text, plain=True, whole=True)

    def marked(self, text: str, restored: Mapping[int, str]) -> list[int]:
        if not restored:
            return self._ids(text, plain=False, whole=False)
        ids: list[int] = []
        for i, piece in enumerate(self.control.split(text)):
            ids += self._ids(piece.translate(restored), plain=not i % 2, whole=False)
        return ids

    def stream(self, after: Sequence[int] = ()) -> "FolderStream":
        return FolderStream(self._tokenizer, after, self._package)

    def _ids(self, text: str, plain: bool, whole: bool) -> list[int]:
        """Tokens of a text; control tokens in it are text where it is `plain`, and it gets its ends where `whole`."""
        self._tokenizer.encode_special_tokens = plain
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=whole).ids
        return found

    def _require_same(self, folder: Folder, settings: _Settings) -> None:
        """Raise InputError where the settings ask for tokens that the library's file does not know, or not to add."""
        for token in settings.added_tokens_decoder.values():
            if self._tokenizer.token_to_id(token.content) is None:
                folder.refuse(f"{SETTINGS} adds the token {token.content!r:.60}, which {FILE} does not know")
        bare, whole = (self._ids("a", plain=True, whole=whole) for whole in (False, True))
        at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        ends = {"add_bos_token": bool(at), "add_eos_token": at + len(bare) < len(whole)}
        for name, does in ends.items():
            asked = getattr(settings, name)
            if asked not in (None, does):
                folder.refuse(f"{SETTINGS} asks for {name} = {asked}, and {FILE} does otherwise")

    def _ends(self, folder: Folder, vocab: int) -> set[int]:
        found = set()
        for name in (DEFAULTS, CONFIG):
            ends = (folder.json(name, _Ends) or _Ends()).eos_token_id
            found |= set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        if any(not 0 <= end < vocab for end in found):
            folder.refuse(f"its texts end with tokens {sorted(found)}, and its model has {vocab}")
        named = self._tokenizer.token_to_id(self.names["eos_token"]) if "eos_token" in self.names else None
        return found | ({named} if named is not None else set())


class FolderStream:
    """The library's own stream of tokens, control tokens left out."""

    def __init__(self, tokenizer: Any, after: Sequence[int], package: Any) -> None:
        self._tokenizer = tokenizer
        self._stream = package.decoders.DecodeStream(ids=list(after), skip_special_tokens=True)
        self._pending: list[int] = []

    def feed(self, token: int) -> str:
        """The text that this token completes."""
        text: str | None = self._stream.step(self._tokenizer, token)
        self._pending = [] if text else [*self._pending, token]
        return text or ""

    def finish(self) -> str:
        """What is left: a replacement character where the last one never came whole."""
        text: str = self._tokenizer.decode(self._pending, skip_special_tokens=True)
        return text


_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


def _text(token: str | _Token | None) -> str:
    return token.content if isinstance(token, _Token) else token or ""


def _template(folder: Folder, settings: _Settings) -> str:
    """The chat template: a file of its own, else that of the settings, of several the one called default."""
    file = folder.path / TEMPLATE
    if file.is_file():
        try:
            with file.open(encoding="utf-8") as opened:
                text = opened.read(_MOST_BYTES + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read: {error}") from None
        if len(text) > _MOST_BYTES:
            folder.refuse(f"{TEMPLATE} has more than {_MOST_BYTES:,} characters")
        return text
    given = settings.chat_template
    if isinstance(given, list):
        return next((one.template for one in given if one.name == "default"), "")
    return given or ""
