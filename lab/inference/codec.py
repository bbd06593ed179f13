"""What every tokenizer answers: text to tokens and back, a chat template applied without trusting the message."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from lab.inference.chat_template import render
from sim.errors import InputError

_STAND_INS = range(0xF0000, 0xFFFFE)  # characters for private use, in no text of a model


class Stream(Protocol):
    """Tokens as text, one after the other: a character that spans tokens appears with its last one."""

    def feed(self, token: int) -> str:
        """The text that this token completes."""

    def finish(self) -> str:
        """What is left: a replacement character where the last one never came whole."""


class Codec(ABC):
    """A tokenizer. `ends` are the tokens that end a text.

    `template` is the model's chat template, `names` the special tokens that it may use, `control` what matches any
    control token's text.
    """

    ends: frozenset[int]
    template: str
    names: Mapping[str, str]
    control: re.Pattern[str]

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Tokens of plain text; what looks like a control token is still text.

        Raises InputError for broken UTF-8, and for text that the vocabulary cannot spell.
        """

    @abstractmethod
    def stream(self, after: Sequence[int] = ()) -> Stream:
        """A decoder of the tokens that follow those `after` which they come."""

    @abstractmethod
    def marked(self, text: str, restored: Mapping[int, str]) -> list[int]:
        """Tokens of what a template wrote, its control tokens among them; `restored` text is then plain."""

    def chat(self, message: str) -> list[int]:
        """As `conversation`, of one user message."""
        return self.conversation([{"role": "user", "content": message}])

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of messages in the model's chat template, up to where the assistant answers.

        Each has a `role` and a `content`; what looks like a control token in the content is still text. Raises
        InputError as `encode` does, and where the model has no template or it cannot be used.
        """
        if not self.template:
            raise InputError("a chat needs a model with a chat template; this one has none")
        said = "".join(message["content"] for message in messages)
        free = (c for c in map(chr, _STAND_INS) if c not in said and c not in self.template)
        stand_ins: dict[str, str] = {}
        disguised = [
            {
                **message,
                "content": self.control.sub(
                    lambda found: stand_ins.setdefault(found[0], next(free)), message["content"]
                ),
            }
            for message in messages
        ]
        text = render(self.template, disguised, self.names)
        return self.marked(text, {ord(c): control for control, c in stand_ins.items()})

    def decode(self, ids: Sequence[int], after: Sequence[int] = ()) -> str:
        """The text of tokens that follow those `after` which they come."""
        stream = self.stream(after)
        return "".join([*map(stream.feed, ids), stream.finish()])


def any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """What matches any of them, the longest where several begin; as a group, so that `split` keeps it."""
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else "((?!))")


def require_text(text: str) -> bytes:
    """The text in UTF-8; raises InputError where it has none."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InputError("the prompt is not valid UTF-8") from None


def tokenizers_package() -> Any:
    """The `tokenizers` package; raises InputError where it is missing."""
    try:
        import tokenizers  # an extra: only generation needs it
    except ImportError:
        raise InputError("generating text needs the package tokenizers: pip install 'kernel-lab[model]'") from None
    return tokenizers
