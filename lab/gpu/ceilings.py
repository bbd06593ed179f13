"""What this card gives at best: reads of HBM and L2, copies here and to a peer, empty launches, the clocks it holds."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import cupy

from lab.gpu import driver
from lab.gpu.device import Conditions, card
from lab.gpu.probes import WORD, dependent_call, kernel, random_words
from lab.gpu.statistics import median_us
from lab.gpu.timing import Call, Clock, Contestant, Timing, measure, rotation
from lab.problems import Problem

SIZES = tuple(2**20 * mib for mib in (2, 8, 32, 128, 512, 2048))  # bytes
LINE = 128  # bytes of L2
PAIRS = "read of line pairs"
_PROBES = {"copy": ("copy",), "read": ("read4", "read8"), PAIRS: ("read4_pairs",)}
_THREADS = (256, 512)
_WAVES = (1, 2, 4, 8)  # CTAs an SM
_L2_SHAPES = ((256, 4), (512, 2), (512, 4), (1024, 2))  # threads, CTAs an SM
_L2_BYTES = 2**30  # that the short one of two reads of L2 moves; the long one three times as many
_PEER = 1  # the other GPU
_CHAIN_COPIES = 16  # dependent launches run eight at a time: none may find its data in L2 because another reads it

Shape = tuple[str, int, int | None]  # probe, threads, CTAs an SM (None gives every CTA one step of the loop)


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


def pairs_ceiling(clock: Clock = Clock.GRAPH, nbytes: int = 2**29, rounds: int = 15) -> Ceiling:
    """The fastest plain read whose loads ask L2 for the 256 bytes around them, which a read does better without."""
    return _best(PAIRS, nbytes, clock, rounds)


def copy_ceiling(clock: Clock = Clock.COLD, nbytes: int = 2**31, rounds: int = 15) -> Ceiling:
    """The fastest plain copy, reads plus writes."""
    return _best("copy", nbytes, clock, rounds)


def l2_ceiling(nbytes: int, rounds: int = 15) -> Ceiling:
    """The fastest read by all SMs of data that stay in L2.

    Its time is what a pass adds: reads of many and of few passes differ by passes alone, neither by a launch nor by
    the first pass, which comes from HBM.
    """
    few = ceil(_L2_BYTES / nbytes)
    many = 3 * few
    with cupy.cuda.Stream(non_blocking=True):
        data, out, words = random_words(nbytes), cupy.zeros(1, cupy.uint32), cupy.uint64(nbytes // WORD)
        contestants = []
        for threads, waves in _L2_SHAPES:
            for passes in (few, many):
                arguments = (data, words, cupy.uint32(passes), out)
                call = _call("read_l2", waves * card().sms, threads, arguments, Clock.COLD)
                contestants.append(Contestant(f"read_l2 {waves * card().sms} x {threads}, {passes} passes", (call,)))
        timings = list(measure(contestants, Clock.COLD, rounds).values())
    found = []
    for short, long in zip(timings[::2], timings[1::2], strict=True):
        samples = [(b - a) / (many - few) for a, b in zip(short.samples_us, long.samples_us, strict=True)]
        shape = short.name.split(",")[0]
        found.append(Ceiling("l2", nbytes, Clock.COLD, median_us(samples), tuple(samples), long.conditions, shape))
    return min(found, key=lambda ceiling: ceiling.us)


def peer_ceiling(nbytes: int = 2**30, rounds: int = 15) -> Ceiling | None:
    """A copy to the memory of another GPU that this process can see; None where there is none to be reached."""
    runtime = cupy.cuda.runtime
    if runtime.getDeviceCount() <= _PEER or not runtime.deviceCanAccessPeer(0, _PEER):
        return None
    with suppress(runtime.CUDARuntimeError):  # the two know each other already
        runtime.deviceEnablePeerAccess(_PEER)
    with cupy.cuda.Device(_PEER):
        there = cupy.zeros(nbytes // 4, cupy.uint32)
        runtime.deviceSynchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        here = random_words(nbytes)
        copy = partial(runtime.memcpyPeerAsync, there.data.ptr, _PEER, here.data.ptr, 0, nbytes, stream.ptr)
        timing = measure([Contestant("peer", (copy,))], Clock.COLD, rounds)["peer"]
    return Ceiling("peer", nbytes, Clock.COLD, timing.us, timing.samples_us, timing.conditions, "copy engine")


def empty_launch(clock: Clock) -> Timing:
    """The time of an empty kernel: inside a graph, what a launch costs; cold, what the clock adds to every time."""
    with cupy.cuda.Stream(non_blocking=True):
        return measure([Contestant("empty", (_call("empty", 1, 32, (), clock),))], clock)["empty"]


def held(work: Call, calls: int = 16, rounds: int = 100) -> Conditions:
    """How the card is after a second of work that never rests, and during so many rounds of so many calls of it.

    A round outlasts the reading of the conditions, so that the card has work all the while.
    """

    def many() -> None:
        for _ in range(calls):
            work()

    with cupy.cuda.Stream(non_blocking=True):
        return measure([Contestant("work", (many,))], Clock.COLD, rounds)["work"].conditions


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


def plain_movers(problem: Problem, copies: int) -> dict[str, list[Contestant]]:
    """What moves a problem's bytes and computes nothing, "read" or "copy", in several launch shapes.

    A read of the weights and the KV cache, where these are most of the bytes; else a copy that moves as many as all.
    """
    size = problem.bytes
    streamed = size["weights"] + size["kv"]
    if 2 * streamed > size["total"]:
        return {"read": read_contestants(streamed, copies)}
    return {"copy": copy_contestants(size["total"] // 2, copies)}


def read_contestants(nbytes: int, copies: int) -> list[Contestant]:
    """Plain reads of so many bytes, in launch shapes that won on an H100 or an H200, over data of their own."""
    shapes = (("read4", 256, None), ("read4", 512, None), ("read4", 256, 8), ("read8", 256, 8), ("read8", 512, 4))
    return _contestants(nbytes, random_words(nbytes * copies), copies, shapes, Clock.GRAPH)


def copy_contestants(nbytes: int, copies: int) -> list[Contestant]:
    """Plain copies of so many bytes, in whole lines, over data of their own."""
    nbytes = -(-nbytes // LINE) * LINE  # which every copy then begins at
    shapes = tuple(("copy", threads, waves) for threads in _THREADS for waves in (8, None))
    out = cupy.empty(nbytes // 4, cupy.uint32)
    return _contestants(nbytes, random_words(nbytes * copies), copies, shapes, Clock.GRAPH, out)


def _best(what: str, nbytes: int, clock: Clock, rounds: int) -> Ceiling:
    """All launch shapes of one size interleaved in one run; the fastest of them."""
    shapes = [(name, threads, waves) for name in _PROBES[what] for threads in _THREADS for waves in (*_WAVES, None)]
    with cupy.cuda.Stream(non_blocking=True):
        copies = 1 if clock is Clock.COLD else rotation(nbytes)
        if clock is Clock.CHAIN:
            copies = max(copies, _CHAIN_COPIES)
        out = cupy.empty(nbytes // 4, cupy.uint32) if what == "copy" else None
        timings = measure(
            _contestants(nbytes, random_words(nbytes * copies), copies, shapes, clock, out), clock, rounds
        )
    best = min(timings.values(), key=lambda timing: timing.us)
    return Ceiling(what, nbytes, clock, best.us, best.samples_us, best.conditions, best.name)


def _contestants(
    nbytes: int, data: cupy.ndarray, copies: int, shapes: Sequence[Shape], clock: Clock, out: Any = None
) -> list[Contestant]:
    """A contestant for each shape, with a call for each copy of the data."""
    out = cupy.zeros(1, cupy.uint32) if out is None else out
    words = cupy.uint64(nbytes // WORD)
    parts = [data[i * nbytes // 4 : (i + 1) * nbytes // 4] for i in range(copies)]
    found = {}
    for name, threads, waves in shapes:
        blocks = waves * card().sms if waves else -(-nbytes // (WORD * threads * (8 if name == "read8" else 4)))
        calls = tuple(_call(name, blocks, threads, (part, words, out), clock) for part in parts)
        found[blocks, name, threads] = Contestant(f"{name} {blocks} x {threads}", calls)
    return list(found.values())


def _call(name: str, blocks: int, threads: int, arguments: tuple[Any, ...], clock: Clock) -> Callable[[], None]:
    """A launch of a probe; in a chain a dependent one of its twin."""
    if clock is Clock.CHAIN:
        return dependent_call(f"{name}_dependent", blocks, threads, arguments)
    return partial(kernel(name), (blocks,), (threads,), arguments)
