"""Engines of prompts and of answers on two GPUs: decode's gaps beside a prefill, prefill's time while it pushes."""

from collections.abc import Iterator
from collections.abc import Sequence as Sized
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import structs

from experiments.running.jobs import ServeJob, Work
from experiments.running.serving import asked, model_of, policy_of
from lab.inference.chip import Chip, chip_of
from lab.inference.step_input import PAGE
from lab.inference.step_weights import StepWeights, random
from lab.problems import Model
from lab.record import Record, Value, provenance
from lab.serving.clock import WallClock
from lab.serving.disaggregation.on_chips import ChipFleet, serve
from lab.serving.engine import StepFacts
from lab.serving.metrics import Steps, summarise
from lab.serving.policy import Policy
from lab.serving.request import Request, Sequence
from sim.errors import EnvironmentFailure

DECODES, STEPS = 32, 200  # sequences that decode, and steps of them that are looked at by themselves
SHORT, LONG = 64, 8128  # tokens of their prompts, and of those that are computed beside them
PROMPTS = 4  # back to back
FIRST = 10_000  # the number of the first of these
CONTEXT = 8192


class FleetWork(Work, frozen=True, kw_only=True):
    """A workload for engines of prompts and of answers, on GPUs of these numbers, or on as many simulated chips."""

    job: ServeJob
    prompts: tuple[int | None, ...]
    answers: tuple[int | None, ...]


class Window(NamedTuple):
    """Gaps between tokens of those that decode, and how long it was, in microseconds."""

    gaps: list[float]
    us: float


class Watched:
    """A pair of engines, and when tokens came."""

    def __init__(self, model: Model, devices: tuple[int, int], machine: str) -> None:
        self._gaps: list[float] = []
        self._begun: set[int] = set()
        pages = 1 + DECODES * (CONTEXT // PAGE) // 2 + 2 * PROMPTS * CONTEXT // PAGE
        policy = Policy(DECODES + PROMPTS, 2048, pages=pages, max_length=CONTEXT, prefix_caching=False)
        prompts, answers = (chip_of(machine, device) for device in devices)
        weights = partial(weights_of, model)
        self._clock = WallClock()
        self.fleet = ChipFleet.of(weights, [prompts], [answers], policy, self._hear, _gone, self._clock, prepared=False)
        for i in range(DECODES):
            self._add(i, SHORT, CONTEXT // 2 - SHORT)
        self._until(set(range(DECODES)))
        self._numbers = FIRST
        self.prompts(2)  # no clock counts these

    def alone(self) -> Window:
        """Steps of those that decode, by themselves."""
        self._gaps, start = [], self._clock.now_us
        for _ in range(STEPS):
            self.fleet.step()
        return Window(self._gaps, self._clock.now_us - start)

    def prompts(self, tokens: int) -> Window:
        """Long prompts back to back, computed for answers of so many tokens; pages of an answer of one go nowhere."""
        self._gaps, start = [], self._clock.now_us
        ids = set(range(self._numbers, self._numbers + PROMPTS))
        self._numbers += PROMPTS
        for id in ids:
            self._add(id, LONG, tokens)
        self._until(ids)
        return Window(self._gaps, self._clock.now_us - start)

    def _add(self, id: int, length: int, tokens: int) -> None:
        prompt = tuple((7 * i + id) % 1000 for i in range(length))
        self.fleet.add(Request(id, prompt, tokens, arrival_us=self._clock.now_us))

    def _until(self, ids: set[int]) -> None:
        while not ids <= self._begun:
            self.fleet.step()

    def _hear(self, _: StepFacts, emitted: Sized[Sequence]) -> None:
        for s in emitted:
            self._begun.add(s.request.id)
            if s.request.id < FIRST and len(s.token_us) > 1:
                self._gaps.append(s.token_us[-1] - s.token_us[-2])


def _gone(_: int, why: str) -> None:
    raise EnvironmentFailure(f"the engine of prompts is gone: {why}")


def weights_of(model: Model, chip: Chip) -> StepWeights:
    """Random weights, in whichever process."""
    return random(model, CONTEXT, chip)


def watch(model: Model, devices: tuple[int, int], machine: str) -> Iterator[dict[str, Value]]:
    """Figures of the pair; raises EnvironmentFailure where an engine cannot begin."""
    watched = Watched(model, devices, machine)
    try:
        alone, kept = watched.alone(), watched.prompts(1)
        (sender,) = watched.fleet.senders
        sender.exposed_us.clear()
        pushed = watched.prompts(2)
        found = {"alone": alone.gaps, "kept": kept.gaps, "pushed": pushed.gaps}
        figures: dict[str, Value] = {}
        for name, gaps in found.items():
            if gaps:
                figures |= {f"p{p}_itl_{name}_us": float(np.percentile(gaps, p)) for p in (50, 99)}
        figures |= {"prompts_us": pushed.us / PROMPTS, "prompts_kept_us": kept.us / PROMPTS}
        figures |= {"tokens": LONG, "exposed_us": float(np.median(sender.exposed_us))}
        yield figures
    finally:
        watched.fleet.stop()


def serve_fleet(argument: Any) -> Iterator[Record]:
    """The figures of a `FleetWork`, by the wall's clock, engines of prompts in processes of their own."""
    asked_for = msgspec.convert(argument, FleetWork)
    job, name = asked_for.job, asked_for.machine
    if asked_for.on == "gpu":
        from lab.gpu import device

        name = device.machine().name
    model, policy, steps, clock = model_of(job), policy_of(job), Steps(), WallClock()
    prompts, answers = ([chip_of(name, n) for n in some] for some in (asked_for.prompts, asked_for.answers))
    fleet = ChipFleet.of(partial(weights_of, model), prompts, answers, policy, steps, _gone, clock)
    try:
        serve(fleet, [structs.replace(r, id=-1 - r.id, arrival_us=0.0, max_tokens=2) for r in asked(job, "warm", 4)])
        steps.facts.clear()
        for sender in fleet.senders:
            sender.exposed_us.clear()
        start = clock.now_us
        requests = [structs.replace(r, arrival_us=r.arrival_us + start) for r in asked(job)]
        sequences = serve(fleet, requests, job.max_concurrency)
    finally:
        fleet.stop()
    facts = [fact for fact in steps.facts if fact.rows]
    figures = summarise(sequences, facts, policy.page_tokens, model.kv_bytes_per_token, job.goodput, job.percentiles)
    exposed = [us for sender in fleet.senders for us in sender.exposed_us]
    figures |= {"gpus": job.gpus, "push_exposed_us": float(np.median(exposed)) if exposed else None}
    yield Record(
        **provenance(), on=asked_for.on, machine=name, experiment=job.experiment, problem=model.as_dict(),
        metrics={**job.facts, **figures},
    )  # fmt: skip
