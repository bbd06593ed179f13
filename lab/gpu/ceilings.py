"""What this card gives at best: read and copy bandwidth, and the launch time of a kernel that does nothing."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cupy

from lab.gpu import driver
from lab.gpu.device import Conditions, card
from lab.gpu.probes import WORD, kernel, random_words
from lab.gpu.timing import Clock, Contestant, Timing, measure, rotation

SIZES = tuple(2**20 * mib for mib in (2, 8, 32, 128, 512, 2048))  # bytes
_THREADS = (256, 512)
_WAVES = (1, 2, 4, 8)  # CTAs an SM


@dataclass(frozen=True)
class Ceiling:
    """The best time found for moving `nbytes` (a copy moves them twice), with its raw samples in microseconds."""

    what: str
    nbytes: int
    clock: Clock
    us: float
    samples_us: tuple[float, ...]
    conditions: Conditions
    launch_shape: str

    @property
    def bandwidth(self) -> float:
        """B/s, reads plus writes."""
        return self.nbytes * (2 if self.what == "copy" else 1) / self.us * 1e6


def read_ceilings(clock: Clock, sizes: Sequence[int] = SIZES, rounds: int = 15) -> list[Ceiling]:
    """The fastest plain read of each size in bytes, over launch shapes."""
    return [_best("read", nbytes, clock, rounds) for nbytes in sizes]


def copy_ceiling(clock: Clock = Clock.COLD, nbytes: int = 2**31, rounds: int = 15) -> Ceiling:
    """The fastest plain copy, reads plus writes."""
    return _best("copy", nbytes, clock, rounds)


def empty_launch(clock: Clock) -> Timing:
    """The time of an empty kernel: inside a graph, what a launch costs; cold, what the clock adds to every time."""
    empty = kernel("empty")
    with cupy.cuda.Stream(non_blocking=True):
        return measure([Contestant("empty", (partial(empty, (1,), (32,), ()),))], clock)["empty"]


def host_launch_us(calls: int = 2000) -> float:
    """Host microseconds a CuPy kernel launch takes, the GPU keeping up."""
    empty = kernel("empty")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        empty((1,), (32,), ())
        driver.synchronize(stream.ptr)
        began = time.perf_counter()
        for _ in range(calls):
            empty((1,), (32,), ())
        took = time.perf_counter() - began
        driver.synchronize(stream.ptr)
    return took / calls * 1e6


def read_contestants(nbytes: int, copies: int) -> list[Contestant]:
    """Plain reads of so many bytes, in the launch shapes that win on an H100, over data of their own."""
    shapes = (("read4", 512, None), ("read8", 256, 8), ("read8", 512, 4))
    return _contestants(nbytes, random_words(nbytes * copies), copies, shapes)


def _best(what: str, nbytes: int, clock: Clock, rounds: int) -> Ceiling:
    """All launch shapes of one size interleaved in one run; the fastest of them."""
    names = ("copy",) if what == "copy" else ("read4", "read8")
    shapes = [(name, threads, waves) for name in names for threads in _THREADS for waves in (*_WAVES, None)]
    with cupy.cuda.Stream(non_blocking=True):
        copies = rotation(nbytes) if clock is Clock.GRAPH else 1
        out = cupy.empty(nbytes // 4, cupy.uint32) if what == "copy" else None
        timings = measure(_contestants(nbytes, random_words(nbytes * copies), copies, shapes, out), clock, rounds)
    best = min(timings.values(), key=lambda timing: timing.us)
    return Ceiling(what, nbytes, clock, best.us, best.samples_us, best.conditions, best.name)


def _contestants(
    nbytes: int, data: cupy.ndarray, copies: int, shapes: Sequence[tuple[str, int, int | None]], out: Any = None
) -> list[Contestant]:
    """A contestant for each (probe, threads, CTAs an SM); None gives every CTA one step of the loop."""
    out = cupy.zeros(1, cupy.uint32) if out is None else out
    words = cupy.uint64(nbytes // WORD)
    parts = [data[i * nbytes // 4 : (i + 1) * nbytes // 4] for i in range(copies)]
    found = {}
    for name, threads, waves in shapes:
        blocks = waves * card().sms if waves else -(-nbytes // (WORD * threads * (8 if name == "read8" else 4)))
        calls = tuple(partial(kernel(name), (blocks,), (threads,), (part, words, out)) for part in parts)
        found[blocks, name, threads] = Contestant(f"{name} {blocks} x {threads}", calls)
    return list(found.values())
