"""What HBM reads once more: a walk of a launch's requests, in their order, over an L2 of two halves with sets of lines.

What is known of Hopper's L2: 128-byte lines; two halves, each of which serves half of the GPCs; a line has its home in
one of them by a hash of its address, and the other keeps a copy of what its own SMs read, so that lines read from both
sides are held twice (NVIDIA developer forum, threads 228015 and 361731). A cyclic read of 44, 48, 53, 58, 63 and 76 MB
hits to 0.96, 0.81, 0.67, 0.39, 0.22 and 0.05 on an H200 of 60 MiB (from rates of RRZE gpu-benches, gpu-l2-cache): the
slope of sets that take the least recently used line's place, filled by a hash, thus unevenly.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.jit import njit
from sim.machine import Machine

LINE = 128  # bytes
WAYS = 32  # lines of a set: binomial filling then gives the slope above
USABLE = 0.92  # of an L2's bytes: where that slope lies
SAMPLED = 64  # one set of so many is walked; hashing makes it stand for the others


class Requests(NamedTuple):
    """What SMs ask of L2, in the order in which it gets there: whole boxes, each so many lines."""

    box: NDArray[np.int32]  # of each request, a number from 0
    half: NDArray[np.int8]  # of the chip, on which the SM lies that asks
    writes: NDArray[np.bool_]
    lines: NDArray[np.int32]  # of each box


class L2(NamedTuple):
    """An L2 as it is walked: `sets` of `ways` lines in each of its halves, of which one of `sampled` is walked."""

    sets: int
    ways: int
    halves: int
    sampled: int


def l2_of(machine: Machine, halves: int = 2) -> L2:
    """That of a machine, or with one half an L2 that holds every line once."""
    usable = USABLE * machine.l2_bytes
    sets = max(SAMPLED, round(usable / (LINE * WAYS * halves)))
    return L2(sets - sets % SAMPLED, WAYS, halves, SAMPLED)


def reread(requests: Requests, l2: L2) -> int:
    """Bytes of lines that HBM reads after it read them once, beginning with an L2 that holds none.

    The sets that are walked stand for all, by their share of the lines that are asked for.
    """
    box, half, writes, lines = requests
    again, walked = _walk(box, half, writes, lines, *l2)
    asked = int(lines[box[~writes]].sum(dtype=np.int64))
    return LINE * round(int(again) * asked / max(int(walked), 1))


@njit(cache=True)
def _walk(box, half, writes, lines, sets, ways, halves, sampled):
    """Of the walked sets: lines that HBM reads again, and lines that are asked for."""
    sets //= sampled
    tags = np.full((halves, sets, ways), -1, np.int64)
    used = np.zeros((halves, sets, ways), np.int64)
    starts, numbers, places = _sampled(lines, sampled)
    met = np.zeros(len(lines), np.bool_)
    clock = again = walked = 0
    for request in range(len(box)):
        which, side = box[request], half[request] % halves
        for at in range(starts[which], starts[which + 1]):
            line, place, home = numbers[at], places[at] % sets, places[at] // sets % halves
            clock += 1
            if writes[request]:
                _touch(tags[home, place], used[home, place], line, clock)
                continue
            walked += 1
            if side != home and _touch(tags[side, place], used[side, place], line, clock):
                continue
            again += not _touch(tags[home, place], used[home, place], line, clock) and met[which]
        met[which] = True
    return again, walked


@njit(cache=True)
def _touch(tags, used, line, clock):
    """Whether a set has a line; it has then, in place of the least recently used one."""
    oldest = 0
    for way in range(len(tags)):
        if tags[way] == line:
            used[way] = clock
            return True
        if used[way] < used[oldest]:
            oldest = way
    tags[oldest], used[oldest] = line, clock
    return False


@njit(cache=True)
def _sampled(lines, sampled):
    """The lines whose sets are walked, box after box: where each box's begin, the lines, their sets and homes."""
    starts = np.zeros(len(lines) + 1, np.int64)
    numbers = np.empty(lines.sum(), np.int64)
    places = np.empty(lines.sum(), np.int64)
    first = found = 0
    for which in range(len(lines)):
        for line in range(first, first + lines[which]):
            hashed = _hash(line)
            if hashed % sampled == 0:
                numbers[found], places[found] = line, hashed // sampled
                found += 1
        first += lines[which]
        starts[which + 1] = found
    return starts, numbers[:found], places[:found]


@njit(cache=True)
def _hash(number):
    """A line's number well mixed (the finalizer of splitmix64, Steele et al., OOPSLA 2014), 62 bits of it."""
    x = np.uint64(number) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((x ^ (x >> np.uint64(31))) >> np.uint64(2))
