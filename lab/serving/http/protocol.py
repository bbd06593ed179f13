"""What clients may ask, as OpenAI's API names it, and what is refused of it: by name, in one sentence."""

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from lab.inference.codec import Codec
from lab.problems.sampling import Settings
from sim.errors import InputError

MOST_CHOICES = 16  # of a request
MOST_STOPS = 16


class Refusal(Exception):
    """An answer that is an error: its HTTP status and the fields of OpenAI's error object."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def document(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(Struct, forbid_unknown_fields=True):
    """What a stream tells beside its text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Asked(Struct, forbid_unknown_fields=True, kw_only=True):
    """What both kinds of request may say. Fields beyond these are refused, those that have no effect must say so."""

    model: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    user: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def choices(self) -> int:
        """How many answers."""
        return 1 if self.n is None else self.n

    @property
    def stops(self) -> list[str]:
        """Strings that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def scored(self) -> bool:
        """Whether tokens come with their log-probabilities."""
        raise NotImplementedError

    def settings(self, seed: int) -> Settings:
        """How tokens are drawn, by a seed where none was given; raises Refusal for what means nothing."""
        found = Settings(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=0 if self.top_k is None or self.top_k == -1 else self.top_k,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            seed=(seed if self.seed is None else self.seed) % 2**64,
        )
        try:
            found.words()
        except (InputError, OverflowError, TypeError) as error:
            raise Refusal(400, str(error), "temperature") from None
        return found

    def require(self) -> None:
        """Raise Refusal for what this server does not do."""
        for name, neutral in (("presence_penalty", 0), ("frequency_penalty", 0), ("repetition_penalty", 1)):
            value = getattr(self, name)
            if value is not None and value != neutral:
                raise Refusal(400, f"{name} is not supported; leave it out or at {neutral}", name)
        if self.logit_bias:
            raise Refusal(400, "logit_bias is not supported", "logit_bias")
        if not 1 <= self.choices <= MOST_CHOICES:
            raise Refusal(400, f"n is from 1 to {MOST_CHOICES}; n = {self.n}", "n")
        if len(self.stops) > MOST_STOPS or not all(self.stops):
            raise Refusal(400, f"stop is up to {MOST_STOPS} strings, none of them empty", "stop")
        if self.stream_options and not self.stream:
            raise Refusal(400, "stream_options are for streams", "stream_options")


class Completion(Asked, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[int | str]
    logprobs: int | None = None
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None

    @property
    def scored(self) -> bool:
        return self.logprobs is not None

    def require(self) -> None:
        super().require()
        if self.logprobs not in (None, 0, 1):
            raise Refusal(400, "logprobs are those of the sampled tokens; ask for 0 or 1", "logprobs")
        if self.echo or self.suffix or self.best_of not in (None, 1):
            raise Refusal(400, "echo, suffix and best_of are not supported", "echo")

    def tokens(self, codec: Codec) -> list[int]:
        """The prompt in tokens; raises Refusal for several prompts at once."""
        parts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        ids = [part for part in parts if isinstance(part, int)]
        if len(ids) == len(parts):
            return ids
        if len(parts) > 1 or not isinstance(parts[0], str):
            raise Refusal(400, "one prompt at a time: a text, or a list of tokens", "prompt")
        return codec.encode(parts[0])


class Message(Struct):
    """One message of a conversation; content may come in parts of text."""

    role: str
    content: str | list[dict[str, Any]]
    name: str | UnsetType = UNSET

    def plain(self) -> dict[str, str]:
        """Role and text; raises Refusal for parts that are no text."""
        if isinstance(self.content, str):
            return {"role": self.role, "content": self.content}
        if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in self.content):
            raise Refusal(400, "messages are of text", "messages")
        return {"role": self.role, "content": "".join(part["text"] for part in self.content)}


class ChatCompletion(Asked, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def scored(self) -> bool:
        return bool(self.logprobs)

    def require(self) -> None:
        super().require()
        if not self.messages:
            raise Refusal(400, "messages are empty", "messages")
        if self.top_logprobs not in (None, 0):
            raise Refusal(
                400, "top_logprobs are not supported; logprobs are those of the sampled tokens", "top_logprobs"
            )


def decoded(body: bytes, kind: type[Any]) -> Any:
    """The request in a body; raises Refusal and says which field is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, f"the request is wrong: {error}") from None
