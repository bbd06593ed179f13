"""Prefill and decode on chips of their own, behind one front door: what a service runs where GPUs are given."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Sized
from contextlib import AbstractContextManager
from dataclasses import replace
from multiprocessing.connection import wait
from types import MappingProxyType
from typing import NamedTuple, Self

from msgspec import structs

from lab.inference.chip import Chip
from lab.inference.lending import lend
from lab.inference.step_weights import StepWeights
from lab.serving.clock import Clock
from lab.serving.disaggregation.front import Front
from lab.serving.disaggregation.handover import Receiver
from lab.serving.disaggregation.live import Together
from lab.serving.disaggregation.prefill import Site
from lab.serving.disaggregation.pushing import Flags, Pool, forward_of
from lab.serving.disaggregation.remote import Remote, Worker
from lab.serving.engine import Engine, Observer, StepFacts
from lab.serving.models import engine_of
from lab.serving.policy import Policy
from lab.serving.request import Request, Sequence
from lab.serving.step import CHUNKS

PATIENCE_S = 1e-4  # for news, where nothing is decoded

NOTHING: Mapping[int | None, StepWeights] = MappingProxyType({})
Gone = Callable[[int, str], object]  # the number of a request that nobody can answer any more, and why
Weights = Callable[[Chip], StepWeights]  # importable, where it is sent to a process


class Placed(NamedTuple):
    """An engine, and what its steps are within."""

    engine: Engine
    place: AbstractContextManager[object]


class ChipFleet:
    """Engines of answers in this thread, and engines of prompts elsewhere, as the one engine that a service runs.

    When an engine of prompts is gone its requests are begun again by another; where there is none they end, of which
    `gone` hears. Not for two threads at once.
    """

    def __init__(
        self, receivers: Sized[Placed], workers: Sized[Worker], senders: Sized[Remote], observe: Observer, gone: Gone
    ) -> None:
        engines = [engine for engine, _ in receivers]
        self.clock: Clock = engines[0].clock
        self.scheduler = Together(engines)
        self.workers = list(workers)
        self.front = Front(senders, [e.scheduler for e in engines if isinstance(e.scheduler, Receiver)])
        self._receivers, self._observe, self._gone = list(receivers), observe, gone
        self._why = ""  # the engine of prompts that ended last did so

    @classmethod
    def of(
        cls,
        weights: Weights,
        prefill: Sized[Chip],
        decode: Sized[Chip],
        policy: Policy,
        observe: Observer,
        gone: Gone,
        clock: Clock,
        apart: bool = True,
        layered: bool = True,
        prepared: bool = True,
        known: Mapping[int | None, StepWeights] = NOTHING,
    ) -> Self:
        """An engine of prompts on each of some chips, in processes of their own or in threads, of answers on others.

        Pages are pushed layer by layer behind their computation, or whole behind it. Where it is not `prepared`, steps
        are captured when they are first needed.
        Weights are those `known` of a device, else they are loaded. Raises InputError where the model is none that
        steps can run, EnvironmentFailure where an engine of prompts cannot begin.
        """
        receivers, lent, flags = [], [], []
        loaded = dict(known)

        def once(chip: Chip) -> StepWeights:
            if chip.device not in loaded:
                loaded[chip.device] = weights(chip)
            return loaded[chip.device]

        for chip in decode:
            place = chip.apart()
            with place:
                forward = forward_of(once(chip), policy)
                lent.append(lend(chip, Pool.nbytes(forward)))
                pool = Pool(forward, lent[-1].array)
                flags.append(Flags(pool, chip))
                engine = engine_of(
                    once(chip), Receiver(policy), chip, observe, clock, cache=pool.cache(chip), prepared=prepared
                )
                receivers.append(Placed(engine, place))
        rules = replace(policy, itl_us=0.0, max_rows=min(CHUNKS, policy.max_rows))  # a step has no more prompts
        targets = tuple(one.name if apart else one.array for one in lent)
        given = weights if apart else once
        sites = [Site(chip.machine.name, chip.device, given, rules, targets, layered, prepared) for chip in prefill]
        if not apart:
            for chip in prefill:
                for other in decode:
                    chip.reach(other)
        workers = [Worker(site, apart) for site in sites]
        for worker in workers:
            worker.wait()
        senders = [Remote(rules, worker.connection, flags, worker.over, clock) for worker in workers]
        return cls(receivers, workers, senders, observe, gone)

    @property
    def senders(self) -> list[Remote]:
        """The engines of prompts that are left."""
        return [sender for sender in self.front.senders.values() if isinstance(sender, Remote)]

    def add(self, request: Request) -> None:
        """Take a request; raises InputError where it can never be served.

        Where no engine of prompts is left, `gone` hears of it at once.
        """
        if not self.front.senders:
            self._gone(request.id, self._why)
            return
        self.front.add(request)
        self.front.offer()

    def abort(self, id: int) -> None:
        """Give a request up, in whatever state; nothing where it has ended."""
        self.front.abort(id)

    def step(self) -> bool:
        """Take what has been computed elsewhere, and let each engine of answers do a step; False where all is done."""
        for number, sender in list(self.front.senders.items()):
            assert isinstance(sender, Remote)
            gone = sender.over()  # what it said before is heard first
            sender.look()
            self._take(number)
            if gone:
                self._lose(number, sender.why)
        self.front.offer()
        worked = [self._step(*receiver) for receiver in self._receivers]
        if any(worked):
            return True
        if not self.front.flights:
            return bool(self.front.waiting)
        wait([sender.connection for sender in self.senders], PATIENCE_S)
        return True

    def stop(self) -> None:
        """End the engines of prompts."""
        for worker in self.workers:
            worker.stop()

    @staticmethod
    def _step(engine: Engine, place: AbstractContextManager[object]) -> bool:
        with place:
            return engine.step()

    def ended(self, ids: set[int]) -> set[int]:
        """Those of some requests that have ended."""
        waiting, known = {request.id for request in self.front.waiting}, self.front.sequences
        return {id for id in ids - waiting if id in known and known[id].reason}

    def _take(self, sender: int) -> None:
        for flight in self.front.computed(sender):
            if sequence := self.front.pushed(flight.offer.request.id):
                self._observe(StepFacts(self.clock.now_us, 0, 0, 0, 0, 0, 0, 0, 0), [sequence])

    def _lose(self, sender: int, why: str) -> None:
        lost = [id for id, flight in self.front.flights.items() if flight.sender == sender and flight.wanted]
        lost += [request.id for request in self.front.waiting]
        self._why = why
        self.front.sender_died(sender)
        waiting = {request.id for request in self.front.waiting}
        for id in lost:
            if id not in waiting:
                self._gone(id, why)


def serve(fleet: ChipFleet, requests: Sized[Request], max_concurrency: int = 0) -> list[Sequence]:
    """Serve requests as they arrive, until all have ended; as `lab.serving.engine.serve` does by one engine.

    Where `max_concurrency` is above 0, no more than so many are sent at once: others arrive when one has ended.
    """
    clock, most, sent = fleet.clock, max_concurrency or len(requests), 0
    under_way: set[int] = set()
    while True:
        now = clock.now_us
        while sent < len(requests) and requests[sent].arrival_us <= now and len(under_way) < most:
            fleet.add(structs.replace(requests[sent], arrival_us=now) if max_concurrency else requests[sent])
            under_way.add(requests[sent].id)
            sent += 1
        busy = fleet.step()
        under_way -= fleet.ended(under_way)
        if busy or under_way:
            continue
        if sent == len(requests):
            return [fleet.front.sequences[request.id] for request in requests]
        clock.wait_until(requests[sent].arrival_us)
