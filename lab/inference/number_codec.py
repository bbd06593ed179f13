"""A tokenizer for random weights, which no text belongs to: a prompt's tokens are its bytes, later ones are numbers."""

from collections.abc import Mapping, Sequence

from lab.inference.codec import Codec, any_of, require_text


class NumberCodec(Codec):
    """Bytes to tokens, tokens to their numbers; nothing ends a text; a chat is its messages, a line each."""

    ends = frozenset()
    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    names: Mapping[str, str] = {}
    control = any_of(())

    def encode(self, text: str) -> list[int]:
        return list(require_text(text))

    def marked(self, text: str, restored: Mapping[int, str]) -> list[int]:
        return self.encode(text.translate(restored))

    def stream(self, after: Sequence[int] = ()) -> "NumberStream":  # noqa: ARG002 (numbers stand alone)
        return NumberStream()


class NumberStream:
    """Numbers, a space before each."""

    def feed(self, token: int) -> str:
        """The token's number."""
        return f" {token}"

    def finish(self) -> str:
        """Nothing is left."""
        return ""
