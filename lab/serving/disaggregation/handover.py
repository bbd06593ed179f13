"""One protocol for both sides of a hand-over, without a clock or a device, as the scheduler is.

The receiver reserves pages and offers them under an epoch; the sender computes the prompt and its first token, holds
its pages while they are pushed, and the flag with that epoch makes the receiver's sequence a running one. Each page is
at any time free (or cached), held by a table, reserved, or under way; who gives up early keeps what another may still
write or read: reserved pages until their writer has ended or is dead, pushed ones until the push has ended.
"""

from collections import deque
from typing import NamedTuple

from msgspec import structs

from lab.serving.policy import Costs, Policy
from lab.serving.request import ABORT, LENGTH, STOP, Request, Sequence
from lab.serving.scheduler import Scheduler
from lab.serving.step import StepPlan, StepResult


class Offer(NamedTuple):
    """Pages that wait for a request's keys and values; who writes them last writes the epoch."""

    request: Request
    epoch: int
    pages: tuple[int, ...]


class Take(NamedTuple):
    """Compute an offer's prompt for the receiver of that number."""

    offer: Offer
    receiver: int


class Ready(NamedTuple):
    """A prompt that is computed: its pages in the order of its tokens, its first token, and when that came.

    `step_us` is how long the step took that computed its last tokens.
    """

    id: int
    pages: tuple[int, ...]
    token: int
    log_probability: float
    at_us: float
    step_us: float


def ended(sequence: Sequence, token: int) -> str:
    """Why a sequence ends with its next token; empty where it goes on."""
    if token in sequence.request.ends:
        return STOP
    return LENGTH if len(sequence.tokens) + 1 == sequence.limit else ""


class Sender(Scheduler):
    """Computes prompts and one token of each, and holds their pages until `sent`."""

    def __init__(self, policy: Policy, costs: Costs | None = None) -> None:
        super().__init__(policy, costs)
        self.held: dict[int, tuple[list[int], int]] = {}  # pages, and the step that wrote the last of them
        self.ready: deque[Ready] = deque()  # to be pushed

    def add(self, request: Request) -> Sequence:
        """Queue the prompt of a request."""
        return super().add(self.prompt_of(request))

    def compute(self, offer: Offer, receiver: int) -> None:  # noqa: ARG002 (whoever pushes asks the front)
        """Begin the prompt of an offer of the receiver with that number."""
        self.add(offer.request)

    def require(self, request: Request) -> None:
        super().require(self.prompt_of(request))

    @staticmethod
    def prompt_of(request: Request) -> Request:
        """What this side is asked for: the prompt and one token."""
        return structs.replace(request, max_tokens=1, fork_of=None)

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        for sequence, samples in zip(plan.sequences, plan.samples, strict=True) if plan else ():
            if samples and sequence.request.id not in self.held:
                for page in sequence.pages:
                    self.pool.share(page)
                self.held[sequence.request.id] = list(sequence.pages), sequence.last_step
        return plan

    def commit(self, result: StepResult) -> list[Sequence]:
        emitted = super().commit(result)
        for s in emitted:
            pages = tuple(self.held[s.request.id][0])
            self.ready.append(Ready(s.request.id, pages, s.tokens[-1], s.log_probability, result.ended_us, result.us))
        return emitted

    def abort(self, id: int) -> Sequence | None:
        """Give up what is not computed yet; what is held stays so until it is `sent`."""
        sequence = super().abort(id)
        if sequence:
            self.sent(id)
        return sequence

    def sent(self, id: int) -> None:
        """The push of a request has ended, or is not to begin: its pages are free once no step touches them."""
        if id in self.held:
            self.pool.release(*self.held.pop(id))


class Receiver(Scheduler):
    """Runs sequences whose prompts were computed elsewhere; one that is preempted is computed here again."""

    def __init__(self, policy: Policy, costs: Costs | None = None) -> None:
        super().__init__(policy, costs)
        self.offers: dict[int, Offer] = {}  # reserved, not arrived
        self.given_up: dict[int, Offer] = {}  # likewise, but nobody wants them any more
        self._arrived: deque[Sequence] = deque()  # for lack of a slot
        self._epochs = 0

    def reserve(self, request: Request) -> Offer | None:
        """Pages for a prompt; None where there are not enough now. Raises InputError where there never can be.

        As many are left as sequences that run may need soon; those that lost theirs come first.
        """
        need = self._pages_of(len(request.prompt))
        sequence = self.add(structs.replace(request, fork_of=None))
        self.waiting.pop()
        if self.waiting or self.pool.available - len(self.running) - len(self._arrived) < need:
            del self.sequences[request.id]
            return None
        sequence.pages = [self.pool.take() for _ in range(need)]
        self._epochs += 1
        offer = self.offers[request.id] = Offer(sequence.request, self._epochs, tuple(sequence.pages))
        return offer

    def arrived(self, id: int, epoch: int, token: int, log_probability: float, at_us: float) -> Sequence | None:
        """The flag of an offer has its epoch: the sequence runs from here on, `token` is its first.

        None where nobody wants it any more; its pages are free now that they are written. An epoch that is no offer's
        is one of a writer that was given up as dead, and nothing.
        """
        if (known := self.given_up.get(id)) and known.epoch == epoch:
            self.pool.release(self.given_up.pop(id).pages, -1)
        known = self.offers.get(id)
        if known is None or known.epoch != epoch:
            return None
        del self.offers[id]
        sequence = self.sequences[id]
        over = ended(sequence, token)
        sequence.tokens.append(token)
        sequence.token_us.append(at_us)
        sequence.log_probability = log_probability
        sequence.scheduled = sequence.computed = len(sequence.request.prompt)
        sequence.length = min(sequence.scheduled + 1, sequence.limit - 1)
        if over:
            self._forget(sequence, over)
        else:
            self._arrived.append(sequence)
        return sequence

    def lost(self, id: int) -> Sequence | None:
        """The writer of an offer is dead and writes no more: its pages are free; returns the sequence, which ends."""
        if id in self.given_up:
            self.pool.release(self.given_up.pop(id).pages, -1)
        if self.offers.pop(id, None) is None:
            return None
        sequence = self.sequences[id]
        self._forget(sequence, ABORT)
        return sequence

    def abort(self, id: int) -> Sequence | None:
        """End a request wherever it is; what was offered for it stays reserved until its writer has ended."""
        sequence = self.sequences.get(id)
        if sequence is None:
            return None
        if id in self.offers:
            self.given_up[id] = self.offers.pop(id)
            sequence.pages = []
            self._forget(sequence, ABORT)
        elif sequence in self._arrived:
            self._arrived.remove(sequence)
            self._forget(sequence, ABORT)
        else:
            super().abort(id)
        return sequence

    def schedule(self) -> StepPlan | None:
        while self._arrived and len(self.running) < self.policy.max_rows:
            self._take_over(self._arrived.popleft())
        return super().schedule()

    @property
    def reserved(self) -> list[int]:
        """Pages that are offered, or were and may still be written, or wait for a slot."""
        offers = [*self.offers.values(), *self.given_up.values()]
        return [page for offer in offers for page in offer.pages] + [p for s in self._arrived for p in s.pages]

    def _take_over(self, sequence: Sequence) -> None:
        pages, sequence.pages = sequence.pages, []
        self.slots.seat(sequence)
        for page in pages:
            self._append(sequence, page)
        self.table_tokens += sequence.scheduled
        self.running.append(sequence)

    def _forget(self, sequence: Sequence, reason: str) -> None:
        """End a sequence that has no slot."""
        self.pool.release(sequence.pages, -1)
        sequence.pages, sequence.reason = [], reason
        del self.sequences[sequence.request.id]
