"""Counted warp requests to global memory: contiguous vectors and strided lanes."""

from sim.cache import READ, WRITTEN
from sim.counts import SECTOR
from sim.jit import njit
from sim.tiles.chip import L2_TO_SM, LOAD_SECTORS, SM_TO_L2, STORE_SECTORS

_READ, _WRITTEN = READ, WRITTEN


@njit(cache=True, inline="always")
def _mark(marks, first, last, bit):
    run = marks[first : last + 1]  # a slice, so that the compiler sees plain indices and vectorises
    for sector in range(run.size):
        run[sector] |= bit


@njit(cache=True)
def load_vector(count, marks, start, nbytes):
    """One warp request for the contiguous bytes [start, start + nbytes) of an array; nothing where nbytes is 0."""
    if nbytes <= 0:
        return
    first, last = start // SECTOR, (start + nbytes - 1) // SECTOR
    count[LOAD_SECTORS] += last - first + 1
    count[L2_TO_SM] += SECTOR * (last - first + 1)
    _mark(marks, first, last, _READ)


@njit(cache=True)
def store_vector(count, marks, start, nbytes):
    """One warp request that writes the contiguous bytes [start, start + nbytes) of an array."""
    if nbytes <= 0:
        return
    first, last = start // SECTOR, (start + nbytes - 1) // SECTOR
    count[STORE_SECTORS] += last - first + 1
    count[SM_TO_L2] += SECTOR * (last - first + 1)
    _mark(marks, first, last, _WRITTEN)


@njit(cache=True)
def _lanes(marks, start, stride, width, lanes, step, times, bit):
    """Unique sectors of `times` requests: lane l of request t accesses `width` bytes at start + l stride + t step.

    Lane addresses ascend. How the lanes fall into sectors repeats when t step comes round to a multiple of a sector, so
    one period is counted and multiplied; every sector is marked.
    """
    if stride == 0:
        lanes = 1  # a broadcast
    period = times
    if step > 0:
        period = 1
        while (period * step) % SECTOR != 0:
            period += 1
    total = 0
    whole, rest = times // period, times % period
    for t in range(min(period, times)):
        previous = -1
        unique = 0
        for lane in range(lanes):
            at = start + lane * stride + t * step
            first, last = at // SECTOR, (at + width - 1) // SECTOR
            unique += last - max(first - 1, previous)
            previous = last
        total += unique * (whole + (1 if t < rest else 0))
    for lane in range(lanes):
        at = start + lane * stride
        _mark_run(marks, at, width, step, times, bit)
    return total


@njit(cache=True, inline="always")
def _mark_run(marks, at, width, step, times, bit):
    if step <= max(SECTOR, width):
        _mark(marks, at // SECTOR, (at + (times - 1) * step + width - 1) // SECTOR, bit)
    else:
        for t in range(times):
            _mark(marks, (at + t * step) // SECTOR, (at + t * step + width - 1) // SECTOR, bit)


@njit(cache=True)
def load_lanes(count, marks, start, stride, width, lanes, step, times):
    """`times` warp requests in which lane l loads `width` bytes at start + l stride, each request `step` bytes on."""
    unique = _lanes(marks, start, stride, width, lanes, step, times, _READ)
    count[LOAD_SECTORS] += unique
    count[L2_TO_SM] += SECTOR * unique


@njit(cache=True)
def store_lanes(count, marks, start, stride, width, lanes, step, times):
    """`times` warp requests in which lane l stores `width` bytes at start + l stride, each request `step` bytes on."""
    unique = _lanes(marks, start, stride, width, lanes, step, times, _WRITTEN)
    count[STORE_SECTORS] += unique
    count[SM_TO_L2] += SECTOR * unique
