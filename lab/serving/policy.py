"""What a scheduler may do, and what it asks before it decides."""

from dataclasses import dataclass
from typing import Protocol

from lab.inference.step_input import PAGE
from lab.serving.power import Heat, Work
from lab.serving.step import Buckets
from sim.errors import InputError

RECOMPUTE, SWAP, CHEAPER = "recompute", "swap", "cheaper"


@dataclass(frozen=True)
class Policy:
    """What the scheduler may do.

    A step has up to `max_rows` sequences and `max_tokens` tokens; where `itl_us` is above 0, only as many tokens as are
    predicted to end by then, by predictions that measured steps correct, but a page of a prompt at least. `pages` and
    `host_pages` hold `page_tokens` tokens each, page 0 of either none; a sequence has up to `max_length` tokens.
    `prefix_caching` shares full pages of equal prefixes. Where `continuous` is false nobody joins a batch from which
    one has ended. `preemption` gives a sequence's pages back by recomputing it later, by a swap to the host, or by the
    cheaper of both. `bypass` is how often others may be admitted before a request that does not fit. Raises InputError
    for what cannot be.
    """

    max_rows: int = 256
    max_tokens: int = 2048
    itl_us: float = 0.0
    pages: int = 1024
    host_pages: int = 1
    page_tokens: int = PAGE
    max_length: int = 8192
    prefix_caching: bool = True
    continuous: bool = True
    preemption: str = RECOMPUTE
    bypass: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.max_rows < self.max_tokens:
            raise InputError(
                "a step has at least one row, and more tokens than rows; "
                f"max_rows = {self.max_rows}, max_tokens = {self.max_tokens}"
            )
        if self.pages < 2 or min(self.page_tokens, self.max_length, self.host_pages) < 1 or self.bypass < 0:
            raise InputError(f"pages, page_tokens, max_length, host_pages or bypass are too small in {self}")
        if self.preemption not in (RECOMPUTE, SWAP, CHEAPER):
            raise InputError(f"preemption is {RECOMPUTE}, {SWAP} or {CHEAPER}; got {self.preemption!r}")

    @property
    def needs_costs(self) -> bool:
        """Whether its decisions ask for predicted times."""
        return bool(self.itl_us) or self.preemption == CHEAPER

    @property
    def buckets(self) -> Buckets:
        return Buckets(self.max_rows, self.max_tokens, -(-self.max_length // self.page_tokens))


class Costs(Protocol):
    """What the scheduler asks before it decides; `lab.serving.times.StepTimes` predicts it."""

    def step(self, singles: int, tokens: int, single_kv: int, chunk_start: int) -> Work: ...

    def heat(self) -> Heat: ...

    def recompute_us(self, tokens: int) -> float: ...

    def swap_us(self, pages: int) -> float: ...
