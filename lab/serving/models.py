"""Loops of a named model: a preset by predicted times, or a checkpoint with its own tokens on a chip."""

from pathlib import Path
from typing import NamedTuple

from lab.inference.checkpoint import Checkpoint, open_checkpoint
from lab.inference.chip import Chip
from lab.inference.codec import Codec
from lab.inference.number_codec import NumberCodec
from lab.inference.progress import progress
from lab.inference.step import StepCache
from lab.inference.step_weights import StepWeights
from lab.problems import Model
from lab.serving.clock import Clock, VirtualClock, WallClock
from lab.serving.engine import Engine, Observer
from lab.serving.executor import Powered, Timeline
from lab.serving.journal import Journal
from lab.serving.on_chip import ChipExecutor, MarkStopwatch, PredictedStopwatch
from lab.serving.policy import Policy
from lab.serving.scheduler import Scheduler
from lab.serving.simulated import simulated
from lab.serving.times import StepTimes
from sim.machine import Machine
from sim.waits import mention


class Served(NamedTuple):
    """A loop, and how text becomes its tokens."""

    engine: Engine
    codec: Codec
    vocab: int


def of_preset(
    model: Model, machine: Machine, policy: Policy, observe: Observer, pace_real: bool, journal: Journal | None = None
) -> Served:
    """A loop of predicted times, by the wall's clock where the pace is real; tokens are made up."""
    if pace_real:
        wait = mention("predicting steps")
        StepTimes(model, machine, policy.buckets).prepare(table=policy.needs_costs)
        wait.cancel()
    clock: Clock = WallClock() if pace_real else VirtualClock()
    return Served(simulated(model, machine, policy, observe, clock=clock, journal=journal), NumberCodec(), model.vocab)


def load(path: Path, chip: Chip) -> "Loaded":
    """A checkpoint's weights on a chip; raises InputError where it is none."""
    checkpoint = open_checkpoint(path)
    with progress("loading the weights", len(checkpoint.config.shapes), "tensors") as advance:
        return Loaded(checkpoint, StepWeights.load(checkpoint.config, checkpoint.file, chip, advance=advance), chip)


def weights_of(path: Path, chip: Chip) -> StepWeights:
    """A checkpoint's weights on a chip, for engines in other processes."""
    return load(path, chip).weights


class Loaded(NamedTuple):
    """A checkpoint on a chip."""

    checkpoint: Checkpoint
    weights: StepWeights
    chip: Chip

    @property
    def model(self) -> Model:
        """Its sizes, in the format of its matrices."""
        return model_of(self.weights)


def model_of(weights: StepWeights) -> Model:
    """The sizes of a model, in the format of its matrices."""
    c = weights.config
    sizes = (c.layers, c.d, c.q_heads, c.kv_heads, c.head_dim, c.ffn, c.vocab)
    return Model(*sizes, tied=c.tied, weights=weights.matrices["layers.0.qkv"].weights)


def engine_of(
    weights: StepWeights,
    scheduler: Scheduler,
    chip: Chip,
    observe: Observer,
    clock: Clock,
    journal: Journal | None = None,
    cache: StepCache | None = None,
    kind: type[ChipExecutor] = ChipExecutor,
    prepared: bool = True,
) -> Engine:
    """A scheduler's loop on a chip, in a cache of its own where none is given; on a GPU all its steps are `prepared`.

    Raises InputError where the model is none that steps can run.
    """
    policy = scheduler.policy
    times = StepTimes(model_of(weights), chip.machine, policy.buckets)
    real = chip.device is not None
    stopwatch = MarkStopwatch(chip, clock) if real else PredictedStopwatch(Timeline(Powered(times)))
    executor = kind(weights, scheduler, chip, stopwatch, cache)
    if real and prepared:
        executor.prepare(policy.buckets.all())
    return Engine(scheduler, executor, clock, observe, journal=journal)


def of_checkpoint(
    loaded: Loaded, policy: Policy, observe: Observer, pace_real: bool, journal: Journal | None = None
) -> Served:
    """A checkpoint on its chip: real tokens; on the simulated chip in times that are predicted.

    Raises InputError where it is no model that steps can run.
    """
    checkpoint, weights, chip = loaded
    times = StepTimes(loaded.model, chip.machine, policy.buckets)
    real = chip.device is not None
    clock: Clock = WallClock() if pace_real or real else VirtualClock()
    engine = engine_of(weights, Scheduler(policy, times), chip, observe, clock, journal)
    if real and policy.needs_costs:
        times.prepare(table=True)
    return Served(engine, checkpoint.tokenizer, checkpoint.config.vocab)
