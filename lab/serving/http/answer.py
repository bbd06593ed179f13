"""One answer as it grows, and OpenAI's objects of it."""

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET

from lab.inference.codec import Codec
from lab.serving.http.service import Token
from lab.serving.http.text import AnswerText
from lab.serving.request import STOP


class Answer:
    """The tokens and the text of one choice so far; `reason` is why it ended, empty while it has not."""

    def __init__(self, codec: Codec, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self.prompt = prompt
        self._codec, self._text = codec, AnswerText(codec, prompt, stops)
        self.said = ""
        self.reason = ""
        self.count = self.cached = 0
        self.last: Token | None = None
        self.first_us = 0.0
        self.scores: list[tuple[str, float | None]] = []

    def take(self, token: Token) -> str:
        """The text that can be said now that a token has come; one that ends the text says nothing itself."""
        self.count += 1
        self.last, self.cached = token, token.cached
        if self.count == 1:
            self.first_us = token.at_us
        ends = token.reason == STOP
        text = "" if ends else self._text.feed(token.token)
        if self._text.stopped:
            self.reason = STOP
        elif token.reason:
            self.reason = token.reason
            text += self._text.finish()
        self.said += text
        self.scores.append((self._codec.decode([token.token]), token.log_probability))
        return text


def choice(at: int, answer: Answer, chat: bool, scored: bool) -> dict[str, Any]:
    """A whole answer."""
    found: dict[str, Any] = {"index": at, "finish_reason": answer.reason}
    if chat:
        found["message"] = {"role": "assistant", "content": answer.said, "refusal": None}
    else:
        found["text"] = answer.said
    return found | {"logprobs": _scores(answer.scores, chat) if scored else None}


def chunk(
    head: dict[str, Any],
    at: int,
    text: str,
    answer: Answer | None,
    chat: bool,
    scored: bool = False,
    role: bool = False,
    usage: Any = UNSET,
) -> dict[str, Any]:
    """What a token adds to an answer."""
    reason = (answer.reason or None) if answer else None
    found: dict[str, Any] = {"index": at, "finish_reason": reason}
    if chat:
        found["delta"] = {"role": "assistant", "content": ""} if role else {"content": text}
    else:
        found["text"] = text
    found["logprobs"] = _scores(answer.scores[-1:], chat) if scored and answer else None
    kind = "chat.completion.chunk" if chat else "text_completion"
    whole = {**head, "object": kind, "choices": [found]}
    return whole if usage is UNSET else {**whole, "usage": usage}


def _scores(scores: Sequence[tuple[str, float | None]], chat: bool) -> dict[str, Any]:
    """Log-probabilities of sampled tokens; those that the chip does not know are null."""
    if chat:
        return {
            "content": [{"token": t, "logprob": s, "bytes": list(t.encode()), "top_logprobs": []} for t, s in scores]
        }
    return {
        "tokens": [text for text, _ in scores],
        "token_logprobs": [score for _, score in scores],
        "top_logprobs": None,
        "text_offset": [],
    }
