"""How MLA decode is divided over clusters, from the lengths of a batch: what mla_plan.cuh finds on the device."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.problems import Attention
from sim.machine import Machine

BLOCK_M = 64  # rows of a CTA, each a query token's head
BLOCK_N = 64  # tokens
WARP = 32
SIZE = 2  # bytes of an element
FLOAT = INDEX = 4
BOX_COLUMNS = 64  # elements of a box's row: 128 bytes, which the swizzle permutes

Ints = NDArray[np.int64]


class Part(NamedTuple):
    """A part of a segment that one worker takes: blocks `lo` to `hi` of its sequence."""

    sequence: int
    row: int  # the cluster's first row of q and y
    rows: int  # the sequence's from there on
    first: int  # which of the sequence's rows that is
    lo: int
    hi: int
    slot: int  # of its partial result; -1 where it is the whole segment

    def live(self, rank: int) -> int:
        """Rows of a CTA of the cluster that are the sequence's."""
        return min(max(self.rows - rank * BLOCK_M, 0), BLOCK_M)


class Stretch(NamedTuple):
    """What a worker has: the sequence where it begins, those that its walk asks about in turn, its parts."""

    found: int  # the size of the batch where it has nothing
    visited: list[int]
    parts: list[Part]


class Partials(NamedTuple):
    """Of a segment that several workers share: the first one, how many, in whose slots its partial results are."""

    first: int
    workers: int
    begins: bool  # in the stretch of the first worker, which has it in its second slot

    def slot(self, partial: int) -> int:
        return 2 * (self.first + partial) + (partial == 0 and self.begins)


@dataclass(frozen=True)
class ClusterPartition:
    """All segments in a row, those of a sequence next to each other, cut into a stretch for every worker."""

    group: int
    rows: int  # of a segment: of the CTAs of a cluster together
    overhead: int  # what a segment costs beside its blocks
    q_starts: Ints
    kv_lens: Ints
    tiles: Ints  # segments of each sequence
    blocks: Ints  # of each of them; one at least
    cost: Ints
    at: Ints  # where the segments of each sequence begin, and where the last one's end
    pieces: int  # of every segment, which count as one each; 0: segments are cut anywhere
    workers: int
    each: int
    longer: int  # the first workers take one more than `each`

    @property
    def batch(self) -> int:
        return self.kv_lens.size

    def begin(self, worker: int) -> int:
        own = min(worker, self.workers)
        return own * self.each + min(own, self.longer)

    def owner(self, at: int) -> int:
        inside = self.longer * (self.each + 1)
        return at // (self.each + 1) if at < inside else self.longer + (at - inside) // self.each

    def stretch(self, worker: int) -> Stretch:
        """The parts of one worker, as its walk finds them."""
        begin, end = self.begin(worker), self.begin(worker + 1)
        found = int(np.searchsorted(self.at[1:], begin, side="right"))
        visited: list[int] = []
        parts: list[Part] = []
        if begin == end:
            return Stretch(found, visited, parts)
        index, tile = found, (begin - int(self.at[found])) // int(self.cost[found])
        at = int(self.at[found]) + tile * int(self.cost[found])
        while at < end:
            visited.append(index)
            if tile == self.tiles[index]:
                index, tile = index + 1, 0
                continue
            blocks, first = int(self.blocks[index]), tile * self.rows
            pieces = self.pieces or blocks  # or every block is one
            start = at + int(self.cost[index]) - pieces
            lo = max(begin - start, 0) * blocks // pieces
            hi = max(min(end - start, pieces), 0) * blocks // pieces
            if lo < hi:
                row, stop = (int(self.q_starts[i]) * self.group for i in (index, index + 1))
                slot = -1 if hi - lo == blocks else 2 * worker + (at >= begin)
                parts.append(Part(index, row + first, stop - row - first, first, lo, hi, slot))
            at += int(self.cost[index])
            tile += 1
        return Stretch(found, visited, parts)

    def partials(self, sequence: int, tile: int) -> Partials | None:
        """The partial results of a segment; None where it is not shared."""
        cost = int(self.cost[sequence])
        begin, end = (int(self.at[sequence]) + i * cost for i in (tile, tile + 1))
        first = self.owner(end - (self.pieces or int(self.blocks[sequence])))
        last = self.owner(end - 1)
        return Partials(first, last - first + 1, self.begin(first) <= begin) if first < last else None

    def limits(self, part: Part, causal: bool) -> Ints:
        """Where the keys end that each row of a cluster's tile sees."""
        keys = self.kv_lens[part.sequence]
        if not causal:
            return np.full(self.rows, keys, np.int64)
        queries = self.q_starts[part.sequence + 1] - self.q_starts[part.sequence]
        token = (part.first + np.arange(self.rows)) // self.group
        limits: Ints = np.minimum(keys - queries + 1 + token, keys)
        return limits


def workers_of(schedule: Any, machine: Machine) -> int:
    """Clusters that divide all segments among themselves: as many as there is room for."""
    return machine.sms // int(schedule.cluster)


def divide(problem: Attention, schedule: Any, q_starts: NDArray, kv_lens: NDArray, most: int) -> ClusterPartition:
    """The partition for sequences of these lengths and at most so many workers."""
    s, rows = schedule, BLOCK_M * schedule.cluster
    starts, keys = q_starts.astype(np.int64), np.minimum(kv_lens.astype(np.int64), problem.kv_len)
    tiles = -(-np.diff(starts) * problem.group // rows)
    blocks = np.maximum(-(-keys // BLOCK_N), 1)
    segments, cost = int(tiles.sum()), int((tiles * (s.overhead + blocks)).sum())
    shortest = int(blocks[tiles > 0].min(initial=problem.kv_len))
    pieces = max(min(most // max(segments, 1), shortest // s.least), 1)
    of_piece = s.overhead + -(-int(blocks.max()) // pieces)
    if -(-segments * pieces // most) * of_piece > cost // most + 2 * s.overhead:
        pieces = 0
    total = segments * pieces or cost
    workers = most if pieces else min(max(total // s.least, 1), most)
    of_segment = np.full_like(blocks, pieces) if pieces else s.overhead + blocks
    at = np.concatenate(([0], np.cumsum(tiles * of_segment)))
    each, longer = divmod(total, workers)
    return ClusterPartition(
        problem.group, rows, s.overhead, starts, keys, tiles, blocks, of_segment, at, pieces, workers, each, longer
    )


def partition_of(problem: Attention, schedule: Any, most: int) -> ClusterPartition:
    """The partition for a problem's own lengths."""
    indices = problem.indices()
    return divide(problem, schedule, indices["q_starts"], indices["kv_lens"], most)
