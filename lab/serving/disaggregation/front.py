"""Which engines a request is with on its way from prefill to decode, and what becomes of it when one of them dies."""

from collections import deque
from collections.abc import Sequence as Sized
from dataclasses import dataclass

from lab.serving.disaggregation.handover import Offer, Ready, Receiver, Sender, ended
from lab.serving.request import ABORT, Request, Sequence
from lab.serving.routing import PrefixRouter
from sim.errors import InputError


@dataclass
class Flight:
    """A request between two engines; it is pushed from `ready` on, unless it is `over` with its first token."""

    offer: Offer
    sender: int
    receiver: int
    ready: Ready | None = None
    wanted: bool = True
    over: bool = False


class Front:
    """Any number of senders and receivers, which hand over one request at a time each; without a clock.

    A request waits for the receiver that has the fewest, which reserves its pages, and is then computed by the sender
    that knows most of its prefix. When an engine dies, requests of which no token is known are begun again, others end.
    """

    def __init__(self, senders: Sized[Sender], receivers: Sized[Receiver]) -> None:
        self.senders: dict[int, Sender] = dict(enumerate(senders))  # those alive
        self.receivers: dict[int, Receiver] = dict(enumerate(receivers))
        self.sequences: dict[int, Sequence] = {}  # every request's, when it has pages or has ended
        self.flights: dict[int, Flight] = {}
        self.waiting: deque[Request] = deque()
        self._router = PrefixRouter(len(senders), page_tokens=senders[0].policy.page_tokens)

    def add(self, request: Request) -> None:
        """Queue a request; raises InputError where it can never be served."""
        if not self.senders or not self.receivers:
            raise InputError("no engine is left that could serve it")
        for scheduler in (*self.senders.values(), *self.receivers.values()):
            scheduler.require(request)
        self.waiting.append(request)

    def offer(self) -> list[int]:
        """Reserve pages for those that wait, in their order, while there are any; returns who has a prompt more."""
        busy = []
        while self.waiting and self.receivers and self.senders:
            request = self.waiting[0]
            if request.id in self.flights:
                break  # its earlier push has not ended
            by_load = sorted(self.receivers, key=self._load)
            found = ((r, self.receivers[r].reserve(request)) for r in by_load)
            receiver, offer = next((pair for pair in found if pair[1]), (0, None))
            if offer is None:
                break
            self.waiting.popleft()
            self.sequences[request.id] = self.receivers[receiver].sequences[request.id]
            sender = self._router.choose(request.prompt)
            if sender not in self.senders:
                self._router.done(sender)
                sender = min(self.senders, key=self._router.open.__getitem__)
                self._router.open[sender] += 1
            self.flights[request.id] = Flight(offer, sender, receiver)
            self.senders[sender].compute(offer, receiver)
            busy.append(sender)
        return busy

    def computed(self, sender: int) -> list[Flight]:
        """What a sender has ready, to be pushed and then told by `pushed`; what is over goes there without a push."""
        found, ready = [], self.senders[sender].ready
        while ready:
            one = ready.popleft()
            flight = self.flights[one.id]
            flight.ready = one
            self._router.done(sender)
            if flight.wanted:
                flight.over = bool(ended(self.sequences[one.id], one.token))
                found.append(flight)
            else:
                self.pushed(one.id)
        return found

    def pushed(self, id: int) -> Sequence | None:
        """The push of a request has ended, or there was none; returns the sequence that goes on from here."""
        flight = self.flights.pop(id)
        assert flight.ready
        if flight.sender in self.senders:
            self.senders[flight.sender].sent(id)
        receiver = self.receivers.get(flight.receiver)
        if receiver is None:
            return None
        one = flight.ready
        return receiver.arrived(id, flight.offer.epoch, one.token, one.log_probability, one.at_us)

    def abort(self, id: int) -> None:
        """Give a request up, wherever it is; nothing where it has ended."""
        for request in [r for r in self.waiting if r.id == id]:
            self.waiting.remove(request)
            self._end(request)
        flight = self.flights.get(id)
        if flight and flight.wanted:
            flight.wanted = False
            self.receivers[flight.receiver].abort(id)
            self._withdraw(id, flight)
        elif flight is None:
            for receiver in self.receivers.values():
                receiver.abort(id)

    def sender_died(self, sender: int) -> None:
        """An engine of prefill is gone, and writes no more: its requests are begun again."""
        del self.senders[sender]
        for id, flight in [(id, f) for id, f in self.flights.items() if f.sender == sender]:
            del self.flights[id]
            if flight.receiver in self.receivers:
                self.receivers[flight.receiver].lost(id)
            if flight.wanted:
                self.waiting.appendleft(flight.offer.request)
        self._end_waiting()

    def receiver_died(self, receiver: int) -> None:
        """An engine of decode is gone with its pages: its requests are begun again, or end where they had tokens."""
        gone = self.receivers.pop(receiver)
        for id, flight in [(id, f) for id, f in self.flights.items() if f.receiver == receiver]:
            if flight.wanted:
                flight.wanted = False
                self.waiting.appendleft(flight.offer.request)
            del gone.sequences[id]
            self._withdraw(id, flight)
        for sequence in gone.sequences.values():
            sequence.reason = ABORT
        self._end_waiting()

    def _withdraw(self, id: int, flight: Flight) -> None:
        """Keep a sender from beginning what nobody wants; what is being pushed already ends by itself."""
        if flight.ready or not self.senders[flight.sender].abort(id):
            return
        self._router.done(flight.sender)
        del self.flights[id]
        if flight.receiver in self.receivers:
            self.receivers[flight.receiver].lost(id)

    def _end_waiting(self) -> None:
        """Where no engine of a kind is left, end all that wait for one."""
        while self.waiting and not (self.senders and self.receivers):
            self._end(self.waiting.popleft())

    def _end(self, request: Request) -> None:
        sequence = self.sequences[request.id] = Sequence(request)
        sequence.reason = ABORT

    def _load(self, receiver: int) -> int:
        return len(self.receivers[receiver].sequences)
