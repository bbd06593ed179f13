"""Loops of a named model: a preset by predicted times, or a checkpoint with its own tokens on a chip."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lab.inference.checkpoint import open_checkpoint
from lab.inference.chip import Chip
from lab.inference.codec import Codec
from lab.inference.config import LlamaConfig
from lab.inference.number_codec import NumberCodec
from lab.inference.progress import progress
from lab.inference.step_weights import StepWeights
from lab.problems import Model
from lab.serving.clock import Clock, VirtualClock, WallClock
from lab.serving.engine import Engine, HostCost, Observer
from lab.serving.executor import Timeline
from lab.serving.journal import Journal
from lab.serving.on_chip import ChipExecutor, MarkStopwatch, PredictedStopwatch
from lab.serving.scheduler import Policy, Scheduler
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
        StepTimes(model, machine, policy.buckets).prepare()
        wait.cancel()
    clock: Clock = WallClock() if pace_real else VirtualClock()
    return Served(simulated(model, machine, policy, observe, clock=clock, journal=journal), NumberCodec(), model.vocab)


def of_checkpoint(
    path: Path, chip: Chip, policy: Policy, observe: Observer, pace_real: bool, journal: Journal | None = None
) -> Served:
    """A checkpoint on a chip: real tokens; on the simulated chip in times that are predicted.

    Sequences are as long as the model's context at most. Raises InputError where it is no model that steps can run.
    """
    checkpoint = open_checkpoint(path)
    with progress("loading the weights", len(checkpoint.config.shapes), "tensors") as advance:
        weights = StepWeights.load(checkpoint.config, checkpoint.file, chip, advance=advance)
    policy = replace(policy, max_length=min(policy.max_length, checkpoint.config.context))
    times = StepTimes(model_of(checkpoint.config, weights), chip.machine, policy.buckets)
    scheduler = Scheduler(policy, times)
    clock: Clock = WallClock() if pace_real or chip.device is not None else VirtualClock()
    real = chip.device is not None
    stopwatch = MarkStopwatch(chip, clock) if real else PredictedStopwatch(Timeline(times))
    executor = ChipExecutor(weights, scheduler, chip, stopwatch)
    if real:
        executor.prepare(policy.buckets.all())
    engine = Engine(scheduler, executor, clock, observe, host=HostCost(), journal=journal)
    return Served(engine, checkpoint.tokenizer, checkpoint.config.vocab)


def model_of(config: LlamaConfig, weights: StepWeights) -> Model:
    """The sizes of a checkpoint's model, in the format of its matrices."""
    sizes = (config.layers, config.d, config.q_heads, config.kv_heads, config.head_dim, config.ffn, config.vocab)
    return Model(*sizes, weights=weights.matrices["layers.0.qkv"].weights)
