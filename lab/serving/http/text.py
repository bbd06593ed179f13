"""An answer as text, token by token: whole characters, and nothing at or after a string that stops it."""

from collections.abc import Sequence

from lab.inference.codec import Codec


class AnswerText:
    """The text of one answer. `stopped` is whether a stop string has come."""

    def __init__(self, codec: Codec, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._stream = codec.stream(prompt)
        self._stops = [stop for stop in stops if stop]
        self._held = ""  # may be the beginning of a stop string
        self.stopped = False

    def feed(self, token: int) -> str:
        """What can be said now that this token has come."""
        return self._say(self._stream.feed(token), last=False)

    def finish(self) -> str:
        """What is left when no token comes any more."""
        return self._say(self._stream.finish(), last=True)

    def _say(self, text: str, last: bool) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [at for at in map(self._held.find, self._stops) if at >= 0]
        if found:
            self.stopped = True
            said, self._held = self._held[: min(found)], ""
            return said
        keep = 0 if last else max(map(self._overlap, self._stops), default=0)
        said, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return said

    def _overlap(self, stop: str) -> int:
        """How long an end of what is held is a beginning of the string, short of all of it."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)
