"""What is asked of the loop, and what it knows of one sequence."""

from array import array
from math import nan

from msgspec import Struct

from lab.problems.sampling import GREEDY, Settings

STOP, LENGTH, ABORT = "stop", "length", "abort"  # why a sequence ended


class Request(Struct, frozen=True):
    """One continuation of a prompt by at most `max_tokens` tokens, or until one of `ends` was sampled.

    Requests with another `salt` share no pages. `fork_of` is the request whose prompt, and pages, this one has too.
    Arrival is in microseconds of the loop's clock.
    """

    id: int
    prompt: tuple[int, ...]
    max_tokens: int
    settings: Settings = GREEDY
    ends: tuple[int, ...] = ()
    arrival_us: float = 0.0
    salt: str = ""
    fork_of: int | None = None


class Sequence:
    """A request under way. There is no phase: it is owed `length - scheduled` tokens, one of them is decode.

    `tokens` are those known, `length` also counts the one that a step in flight will sample; `scheduled` tokens have
    been given to steps, `computed` ones have their keys and values. `pages` is its block table's row in `slot`, or
    lies in pages of the host where `host` is not empty. `token_us` are the times at which
    tokens came.
    """

    __slots__ = (
        "bypassed",
        "chain",
        "computed",
        "found",
        "host",
        "last_step",
        "length",
        "limit",
        "log_probability",
        "pages",
        "published",
        "reason",
        "request",
        "scheduled",
        "slot",
        "token_us",
        "tokens",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.tokens = array("i", request.prompt)
        self.length = len(self.tokens)
        self.limit = self.length + request.max_tokens
        self.scheduled = self.computed = 0
        self.pages: list[int] = []
        self.host: list[int] = []
        self.slot = -1
        self.last_step = -1  # the newest step that has a row of it
        self.published = 0  # full pages whose place in the prefix tree is `chain`
        self.chain: int | str = request.salt
        self.found = 0  # tokens of it that were computed when it was first admitted
        self.bypassed = 0  # how often a later request was admitted first
        self.reason = ""  # why it ended; empty while it has not
        self.token_us: list[float] = []
        self.log_probability = nan  # of the newest token

    @property
    def sampled(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[len(self.request.prompt) :].tolist()
