"""Text of answers: chunks are the whole, characters come whole, nothing at or after a stop string is ever said."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from lab.inference.codec import Codec, any_of
from lab.serving.http.text import AnswerText


class Bytes(Codec):
    """A token a byte of UTF-8."""

    ends = frozenset()
    template, names, control = "", {}, any_of(())

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def marked(self, text: str, restored: object) -> list[int]:  # noqa: ARG002
        return self.encode(text)

    def stream(self, after: Sequence[int] = ()) -> "Decoder":  # noqa: ARG002
        return Decoder()


class Decoder:
    def __init__(self) -> None:
        import codecs

        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(bytes([token]))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


TEXTS = st.text("ab¿😀", max_size=12)
STOPS = st.lists(st.text("ab¿😀", min_size=1, max_size=3), max_size=3)


@given(TEXTS, STOPS)
def test_chunks_are_the_text_up_to_the_first_stop_string(text: str, stops: list[str]) -> None:
    answer = AnswerText(Bytes(), (), stops)
    chunks: list[str] = []
    for token in text.encode():
        chunks.append(answer.feed(token))
        if answer.stopped:
            break
    else:
        chunks.append(answer.finish())
    # The first moment at which some stop string is whole; of those that are, the one that begins first ends the text.
    whole = next((n for n in range(len(text) + 1) if any(stop in text[:n] for stop in stops)), None)
    expected = text if whole is None else text[: min(text.find(s) for s in stops if s in text[:whole])]
    assert "".join(chunks) == expected
    assert answer.stopped == (whole is not None)
    assert not any(stop in "".join(chunks) for stop in stops)


@given(st.binary(max_size=8))
def test_what_is_no_text_is_replaced_once_at_its_end(raw: bytes) -> None:
    answer = AnswerText(Bytes(), (), ())
    said = "".join([*map(answer.feed, raw), answer.finish()])
    assert said == raw.decode("utf-8", "replace")
