"""What the worker process runs of serving loops: workloads served by the wall's clock, tokens checked afterwards."""

import gc
from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Sequence as Sized
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from statistics import median
from typing import Any

import msgspec
import numpy as np
from msgspec import structs

from experiments.running.jobs import ServeJob
from experiments.running.on_device import in_time
from experiments.running.serving import asked, metrics_of, model_of, policy_of, predicted
from lab.inference.chip import Chip
from lab.inference.step_input import Layout
from lab.inference.step_weights import StepWeights
from lab.problems import Model
from lab.record import Checked, Record, Value
from lab.serving.clock import WallClock
from lab.serving.engine import Engine, HostCost, StepFacts, serve
from lab.serving.executor import Powered, Timeline
from lab.serving.journal import Journal, decisions, decoded
from lab.serving.metrics import Steps
from lab.serving.on_chip import ChipExecutor, MarkStopwatch, PredictedStopwatch
from lab.serving.policy import Policy
from lab.serving.request import Request, Sequence
from lab.serving.scheduler import Scheduler
from lab.serving.simulated import Overheads, ScaledTimes
from lab.serving.times import StepTimes
from sim.formats import decode

CLOSE = 2.0**-4  # of the largest logit: steps of other sizes, rounded to bf16 in each of dozens of layers
WARM = 8  # tokens of a request that no clock counts
LOOKED_AT = 8  # tokens that are computed once more, each sequence by itself


def serve_jobs(argument: Any) -> Iterator[Record]:
    """Each job served on this GPU, and then all by predicted times on the same arrivals."""
    from lab.gpu import device
    from lab.gpu.bench import shared_fields
    from lab.inference.chip import gpu

    chip, loop = gpu(device.machine()), None
    every = [msgspec.convert(job, ServeJob) for job in argument["jobs"]]
    origin = shared_fields(None, chip.machine, every[0].experiment)
    told: dict[str, tuple[dict[str, Any], Run]] = {}
    for job in in_time(argument, ServeJob):
        if isinstance(job, Record):
            yield job
            continue
        model = model_of(job)
        if loop is None or not loop.serves(job):
            loop = None  # its pages are needed
            policy = widest(policy_of(job), [policy_of(one) for one in every if model_of(one) == model])
            loop = Loop(model, policy, job.look_ahead, chip, _weights(model, max(policy.max_length, 8192)))
        shared = {**origin, "problem": model.as_dict()}
        run = loop.serve(job)
        yield Record(**shared, metrics={**job.facts, **run.figures}, check=loop.check())
        told[str(job.facts)] = {**shared, "on": "sim", "card": None, "driver": None}, run
    for shared, run in told.values():  # the GPU is needed no longer
        facts = {**run.job.facts, **predicted(run.job, chip.machine)}
        yield Record(**shared, metrics=facts | (run.attributed() if run.job.attribute else {}))


def widest(policy: Policy, others: Sized[Policy]) -> Policy:
    """A policy that allows steps as large as the largest of those `others` whose caches are as its own."""
    alike = [one for one in others if _steps_aside(one) == _steps_aside(policy)]
    rows, tokens = (max(getattr(one, name) for one in [policy, *alike]) for name in ("max_rows", "max_tokens"))
    return replace(policy, max_rows=rows, max_tokens=tokens)


def _steps_aside(policy: Policy) -> Policy:
    """A policy but for the limits of its steps."""
    return replace(policy, max_rows=1, max_tokens=2, itl_us=0.0)


@dataclass(frozen=True)
class Run:
    """What a loop did with a job: its figures, its steps, its journal's lines, and the times predicted of it."""

    job: ServeJob
    figures: dict[str, Value]
    facts: list[StepFacts]
    lines: bytes
    times: StepTimes

    def attributed(self) -> dict[str, Value]:
        """How far steps are from what is predicted of them, and what the loop does by the measured ones alone.

        Figures that begin with `steps_` take each bucket's measured times for predicted ones, those with `host_` the
        measured work of the host and the gaps between graphs too.
        """
        made = list(decisions(map(decoded, self.lines.splitlines())))
        facts, heat = self.facts, self.times.heat()
        buckets: dict[Layout, list[float]] = defaultdict(list)
        kinds: dict[str, list[float]] = defaultdict(list)
        for decision, fact in zip(made, facts, strict=True):
            heat.rest(fact.idle_us)
            if fact.rows:
                work = self.times.rows(decision.starts, decision.counts)
                ratio = fact.us / heat.copy().run(work)
                heat.ran(work, fact.us)
                singles = sum(count == 1 for count in decision.counts)
                buckets[self.times.buckets.of(singles, fact.rows - singles, fact.tokens)].append(ratio)
                kinds["decode" if fact.rows == fact.tokens else "mixed"].append(ratio)
        told: dict[str, Value] = {f"measured_over_predicted_{kind}": median(found) for kind, found in kinds.items()}
        usual = median(ratio for found in buckets.values() for ratio in found)
        pace = ScaledTimes(self.times, {key: median(found) for key, found in buckets.items()}, usual)
        host = Overheads(_host_cost(facts), max(0.0, median(f.idle_us for f in facts)))
        for name, overheads in (("steps", None), ("host", host)):
            figures = predicted(self.job, self.times.machine, overheads, pace)
            told |= {f"{name}_{key}": value for key, value in figures.items()}
        return {**told, "host_step_us": host.host.step_us, "host_row_us": host.host.row_us, "gap_us": host.gap_us}


class Loop:
    """A scheduler over a chip with all its buckets captured, for one job after another."""

    def __init__(self, model: Model, policy: Policy, look_ahead: bool, chip: Chip, weights: StepWeights) -> None:
        self._model, self._policy, self._look_ahead = model, policy, look_ahead
        self.chip, clock = chip, WallClock()
        self.sequences: list[Sequence] = []
        self.times = StepTimes(model, chip.machine, policy.buckets)
        self.steps = Steps()
        self.scheduler = Scheduler(policy, self.times)
        real = chip.device is not None
        stopwatch = MarkStopwatch(chip, clock) if real else PredictedStopwatch(Timeline(Powered(self.times)))
        self.executor = ChipExecutor(weights, self.scheduler, chip, stopwatch)
        if real:
            self.executor.prepare(policy.buckets.all())
        self.engine = Engine(self.scheduler, self.executor, clock, self.steps, look_ahead)
        self._runs = 0

    def serves(self, job: ServeJob) -> bool:
        """Whether this loop's buckets and pages are those of a job."""
        asked = (model_of(job), widest(policy_of(job), [self._policy]), job.look_ahead)
        return asked == (self._model, replace(self._policy, itl_us=policy_of(job).itl_us), self._look_ahead)

    def serve(self, job: ServeJob) -> Run:
        """One run; a short one goes before it, which no clock counts."""
        self._runs += 1
        salt, engine = str(self._runs), self.engine
        self.scheduler.policy = policy_of(job)
        if self.scheduler.policy.needs_costs:
            self.times.prepare(table=True)
        first = asked(job, f"{salt} warm", most=4)
        first = [structs.replace(r, id=-1 - r.id, arrival_us=0.0, max_tokens=WARM) for r in first]
        serve(engine, first)
        self.steps.facts.clear()
        self.scheduler.preemptions = self.scheduler.hits = self.executor.late = 0
        lines = BytesIO()
        engine.journal = Journal(lines, self.scheduler.policy, self.times) if job.attribute else None
        requests = asked(job, salt)
        gc.collect()
        gc.freeze()
        gc.disable()  # its pauses are of milliseconds
        start, known = engine.clock.now_us, self._predictions
        requests = [structs.replace(r, arrival_us=r.arrival_us + start) for r in requests]
        try:
            self.sequences = serve(engine, requests, job.max_concurrency)
        finally:
            gc.enable()
            gc.unfreeze()
            engine.journal = None
        facts = list(self.steps.facts)
        figures = metrics_of(job, self.sequences, facts, self.scheduler)
        figures |= {"late_captures": self.executor.late, "late_predictions": self._predictions - known}
        return Run(job, figures, facts, lines.getvalue(), self.times)

    @property
    def _predictions(self) -> int:
        """Predictions that were worked out for decisions so far."""
        return self.times.worked_out if self.scheduler.policy.needs_costs else 0

    def check(self, seed: int = 0) -> Checked:
        """Whether tokens drawn at random from the run are the likeliest where the sequence is computed by itself."""
        rng, worst = np.random.default_rng(seed), 0.0
        for i in range(LOOKED_AT):
            sequence = self.sequences[int(rng.integers(len(self.sequences)))]
            place = int(rng.integers(len(sequence.sampled)))
            prompt = (*sequence.request.prompt, *sequence.sampled[:place])
            serve(self.engine, [Request(-1000 - i, prompt, 1, arrival_us=0.0, salt=f"{self._runs} check {i}")])
            logits = decode(self.chip.read(self.executor.logits)[0], "bf16")
            short = float(logits.max() - logits[sequence.sampled[place]])
            worst = max(worst, short / (2 * CLOSE * float(np.abs(logits).max())))
        return Checked(worst <= 1, worst)


def _host_cost(facts: Sized[StepFacts]) -> HostCost:
    """Least squares of the host's microseconds over rows, the slowest hundredth left out."""
    rows, us = np.asarray([f.rows for f in facts], float), np.asarray([f.host_us for f in facts])
    keep = us <= np.percentile(us, 99)
    if np.ptp(rows[keep]) == 0:
        return HostCost(float(np.median(us)), 0.0)
    slope, base = np.polyfit(rows[keep], us[keep], 1)
    return HostCost(max(float(base), 0.0), max(float(slope), 0.0))


@lru_cache(maxsize=1)
def _weights(model: Model, context: int) -> StepWeights:
    """Random weights, kept for the loops that follow."""
    import cupy

    from lab.gpu import device
    from lab.inference.chip import gpu
    from lab.inference.step_weights import random

    found = random(replace(model, batch=1, context=1), context, gpu(device.machine()))
    cupy.cuda.get_current_stream().synchronize()
    return found
