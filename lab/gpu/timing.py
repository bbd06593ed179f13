"""Times on the GPU: CUDA events around work that finds its data in HBM, contestants interleaved in one run.

Three clocks. Cold: single calls, L2 flushed before each by reads outside the window. Graph: per call inside a CUDA
graph that rotates over more data than L2 holds. Chain: likewise, of calls that are dependent launches, as a step of a
model pays them; the calls bring the dependence along.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from math import ceil
from typing import Any

import cupy

from lab.gpu import driver
from lab.gpu.device import Conditions, conditions
from lab.gpu.probes import Flush
from lab.gpu.statistics import median_us, summary

ROTATION_BYTES = 260_000_000  # four times the L2 of an H200: no call of a rotation finds its data there
GRAPH_SAMPLE_US = 2000.0  # a replay lasts at least this, so that its start costs under a percent
MAX_GRAPH_CALLS = 2048
WARM_UP_ROUNDS = 3
BURST_PAUSE_S = 0.02
BURST_FLUSHES = 10  # keep the chip busy for about a millisecond: after a pause the host takes long to enqueue a call
SUSTAINED_S = 1.0
REST_S = 0.5  # after a shorter pause the chip is as warm as it was

Call = Callable[[], None]


class Clock(StrEnum):
    """How a time was taken."""

    COLD = "cold"
    GRAPH = "graph"
    CHAIN = "chain"


class Pace(StrEnum):
    """Whether the chip rests before each sample, or has worked for a second before the first sample and never rests."""

    BURST = "burst"
    SUSTAINED = "sustained"


@dataclass(frozen=True)
class Contestant:
    """Something to time: `calls` enqueue the same work on CuPy's current stream, each on its own copy of the data."""

    name: str
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class Timing:
    """Raw samples of one contestant, in microseconds a call, and how the chip was while they were taken."""

    name: str
    clock: Clock
    pace: Pace
    samples_us: tuple[float, ...]
    conditions: Conditions = field(default_factory=Conditions)

    @property
    def us(self) -> float:
        return median_us(self.samples_us)


def rotation(nbytes: int) -> int:
    """How many copies of data of that size a rotation needs so that every call finds its own in HBM."""
    return min(MAX_GRAPH_CALLS, max(2, ceil(ROTATION_BYTES / nbytes)))


def round_robin(count: int, rounds: int) -> Iterator[list[int]]:
    """The order of each round: everyone once, each round starting with the next, every other one backwards."""
    for start in range(rounds):
        order = [(start + i) % count for i in range(count)]
        yield order if start % 2 == 0 else order[::-1]


def measure(
    contestants: Sequence[Contestant],
    clock: Clock,
    rounds: int = 30,
    pace: Pace = Pace.SUSTAINED,
    sample_us: float = GRAPH_SAMPLE_US,
) -> dict[str, Timing]:
    """Time all contestants on one clock, one sample of each a round; raises EnvironmentFailure where one fails.

    A replay of a graph lasts `sample_us` or longer.
    """
    stream = cupy.cuda.get_current_stream()
    if stream.ptr == 0:
        raise ValueError("timing needs a stream of its own: `with cupy.cuda.Stream(non_blocking=True): ...`")
    for contestant in contestants:
        for call in contestant.calls[:2]:
            call()
    driver.synchronize(stream.ptr)
    sampler, flush = _cold if clock is Clock.COLD else partial(_graph, sample_us), Flush()
    samplers = [sampler(c, flush, stream) for c in contestants]
    _warm_up(samplers, stream, pace)
    samples: list[list[float]] = [[] for _ in contestants]
    readings = []
    for number, order in enumerate(round_robin(len(contestants), rounds)):
        events = []
        for who in order:
            if pace is Pace.BURST:
                driver.synchronize(stream.ptr)
                time.sleep(BURST_PAUSE_S)
                for _ in range(BURST_FLUSHES):
                    flush()
            events.append((who, samplers[who](number)))
        readings.append(conditions())  # the queue is still running
        driver.synchronize(stream.ptr)
        for who, (start, stop, calls) in events:
            samples[who].append(cupy.cuda.get_elapsed_time(start, stop) * 1e3 / calls)
    if pace is Pace.SUSTAINED:
        global _worked_until
        _worked_until = time.perf_counter()
    seen = summary(readings)
    return {c.name: Timing(c.name, clock, pace, tuple(s), seen) for c, s in zip(contestants, samples, strict=True)}


Sampler = Callable[[int], tuple[Any, Any, int]]  # number of the round -> start event, stop event, calls between them


def _cold(contestant: Contestant, flush: Flush, stream: Any) -> Sampler:
    def sample(number: int) -> tuple[Any, Any, int]:
        call = contestant.calls[number % len(contestant.calls)]
        return (*_timed(call, flush, stream), 1)

    return sample


def _graph(sample_us: float, contestant: Contestant, flush: Flush, stream: Any) -> Sampler:
    calls = contestant.calls
    once = partial(_capture(calls, 1, stream).launch, stream)
    once()
    start, stop = _timed(once, flush, stream)
    driver.synchronize(stream.ptr)
    us = cupy.cuda.get_elapsed_time(start, stop) * 1e3 / len(calls)
    repeats = max(1, ceil(min(MAX_GRAPH_CALLS, sample_us / us) / len(calls)))
    replay = partial(_capture(calls, repeats, stream).launch, stream)
    return lambda _: (*_timed(replay, flush, stream), repeats * len(calls))


def _timed(work: Call, flush: Flush, stream: Any) -> tuple[Any, Any]:
    """Events around work. The flush before them keeps the chip busy until the host has enqueued all three."""
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    flush()
    start.record(stream)
    work()
    stop.record(stream)
    return start, stop


def _capture(calls: Sequence[Call], repeats: int, stream: Any) -> Any:
    stream.begin_capture()
    try:
        for _ in range(repeats):
            for call in calls:
                call()
    finally:
        graph = stream.end_capture()  # also after an error, or the stream could never be used again
    return graph


_worked_until = float("-inf")  # when a sustained measurement ended, in seconds of time.perf_counter


def _warm_up(samplers: Sequence[Sampler], stream: Any, pace: Pace) -> None:
    """A few samples of each; for a sustained pace a second of them, unless the chip has only just stopped."""
    began = time.perf_counter()
    warm = pace is not Pace.SUSTAINED or began - _worked_until < REST_S
    seconds = 0.0 if warm else SUSTAINED_S
    number = 0
    while number < WARM_UP_ROUNDS or time.perf_counter() - began < seconds:
        for sampler in samplers:
            sampler(number)
        driver.synchronize(stream.ptr)
        number += 1
