"""attention_mla, counted and computed: the parts of every worker, block after block, and the rows that are joined.

The walk over the plan is plain Python; all that touches memory or multiplies is a primitive of sim.tiles. Weights are
relative to whole powers of two; on the device to a score and whole powers from it: the same but for rounding.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.kernels.attention.mla_plan import (
    BLOCK_M,
    BLOCK_N,
    BOX_COLUMNS,
    FLOAT,
    INDEX,
    SIZE,
    WARP,
    ClusterPartition,
    Part,
    Partials,
    Stretch,
    divide,
    workers_of,
)
from sim.counts import Counts
from sim.formats import encode
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import (
    ELEMENT,
    SimulatedChip,
    add_atomically,
    count_exp,
    load_tile,
    load_vector,
    mma_useful,
    normalise,
    rescale,
    seen_pairs,
    store_vector,
    take_scores_by_powers,
)

LOG2_E = np.float32(1.4426950408889634)
LN_2 = np.float32(0.6931471805599453)

Count = NDArray[np.int64]


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    """All workers, and the rows that they share; where `arrays` has q, with numbers."""
    run = _Run(launch, arrays, machine)
    run.multiply()
    return run.chip.counts()


class _Run:
    """A launch on a simulated chip."""

    def __init__(self, launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> None:
        p = launch.problem
        self.problem, self.schedule, self.arrays = p, launch.schedule, arrays
        self.chip = SimulatedChip(launch, machine)
        self.tiles = -(-p.q_len * p.group // (BLOCK_M * launch.schedule.cluster))  # of a sequence, at most
        self.cache, self.places = ("cache", "block_table") if p.page else ("k", "kv_starts")
        self.numerics = "y" in arrays
        self.workers = workers_of(launch.schedule, machine)
        self.plan: ClusterPartition = divide(p, launch.schedule, arrays["q_starts"], arrays["kv_lens"], self.workers)

    def multiply(self) -> None:
        """Every worker's stretch, by each CTA of its cluster."""
        for worker in range(self.workers):
            stretch = self.plan.stretch(worker)
            for rank in range(self.schedule.cluster):
                count = self.chip.count[worker * self.schedule.cluster + rank]
                self._find(count, stretch)
                for part in stretch.parts:
                    self._part(count, part, rank)
                    if part.slot >= 0:
                        tile = part.sequence * self.tiles + part.first // self.plan.rows
                        at = INDEX * (tile * self.schedule.cluster + rank)
                        add_atomically(count, self.chip.marks("arrivals"), at, INDEX)
        self._join_shared()

    def _join_shared(self) -> None:
        """The rows of segments that several workers share, by the last of these."""
        p, plan, cluster = self.problem, self.plan, self.schedule.cluster
        for sequence in range(p.batch):
            for tile in range(int(plan.tiles[sequence])):
                partials = plan.partials(sequence, tile)
                if not partials:
                    continue
                first = int(plan.q_starts[sequence]) * p.group + tile * plan.rows
                end = min(first + plan.rows, int(plan.q_starts[sequence + 1]) * p.group)
                last = partials.first + partials.workers - 1
                for row in range(first, end):
                    own = row - first
                    self._join(self.chip.count[last * cluster + own // BLOCK_M], row, own, partials)

    def _scan(self, count: Count, upto: int) -> None:
        """The lengths of the first `upto` sequences, 32 after another."""
        for first in range(0, min(upto, self.problem.batch), WARP):
            self._load_lengths(count, first, min(WARP, self.problem.batch - first))

    def _load_lengths(self, count: Count, first: int, sequences: int) -> None:
        starts, nbytes = self.chip.marks("q_starts"), INDEX * sequences
        load_vector(count, starts, INDEX * first, nbytes)
        load_vector(count, starts, INDEX * (first + 1), nbytes)
        load_vector(count, self.chip.marks("kv_lens"), INDEX * first, nbytes)

    def _find(self, count: Count, stretch: Stretch) -> None:
        """All lengths, for how the row is cut; up to the stretch's beginning; then one sequence after another."""
        at_once = self.schedule.planned_at_once
        if self.problem.uniform:
            return
        self._scan(count, self.problem.batch)
        self._scan(count, (stretch.found // at_once + 1) * at_once)
        for index in stretch.visited[:1] + stretch.visited:  # the first one says where its segment begins, too
            self._load_lengths(count, index, 1)

    def _matrix(self, name: str) -> NDArray[np.uint16]:
        """An input's rows of head_dim elements; none where it is only counted."""
        dim = self.problem.head_dim
        return self.arrays[name].reshape(-1, dim) if self.numerics else np.zeros((0, dim), np.uint16)

    def _part(self, count: Count, part: Part, rank: int) -> None:
        """A CTA's rows of a part against its blocks."""
        p, s, numerics = self.problem, self.schedule, self.numerics
        q, y = np.zeros((BLOCK_M, p.head_dim), np.float32), np.zeros((BLOCK_M, p.value_dim), np.float32)
        self._load(count, "q", p.tokens * p.q_heads, part.row + rank * BLOCK_M, q)
        exponent, total = np.full(BLOCK_M, -np.inf, np.float32), np.zeros(BLOCK_M, np.float32)
        decay, start = np.empty(BLOCK_M, np.float32), np.zeros(BLOCK_M, np.int64)
        live, scale = part.live(rank), np.float32(p.score_scale) * LOG2_E
        limits = self.plan.limits(part, p.causal)[rank * BLOCK_M :][:BLOCK_M]
        for block in range(part.lo, part.hi):
            tile = np.empty((BLOCK_N, p.head_dim), np.float32)
            self._load_block(count, part, block, tile)
            keys, values = np.ascontiguousarray(tile.T), np.ascontiguousarray(tile[:, : p.value_dim])
            values[max(int(self.plan.kv_lens[part.sequence]) - block * BLOCK_N, 0) :] = 0
            end = limits - block * BLOCK_N
            pairs = seen_pairs(start[:live], end[:live], BLOCK_N)
            scores = np.zeros((BLOCK_M, BLOCK_N), np.float32)
            mma_useful(count, scores, q, keys, p.head_dim * pairs, numerics)
            take_scores_by_powers(
                count, scores, start, end, scale, 0, s.slack, exponent, total, decay, ELEMENT[p.kv], numerics
            )
            if numerics:
                rescale(y, decay)
            mma_useful(count, y, scores, values, p.value_dim * pairs, numerics)
        if numerics:
            normalise(y, total)
        self._store(count, part, rank, y, exponent, total)

    def _load(self, count: Count, name: str, rows: int, row: int, tile: NDArray[np.float32]) -> None:
        """Boxes of 64 columns, from `row` on."""
        p, source = self.problem, self._matrix(name)
        for column in range(0, p.head_dim, BOX_COLUMNS):
            box = tile[:, column : column + BOX_COLUMNS]
            load_tile(count, self.chip.marks(name), source, rows, p.head_dim, row, column, box, ELEMENT[p.kv])

    def _load_block(self, count: Count, part: Part, block: int, tile: NDArray[np.float32]) -> None:
        """Where the block's tokens lie, then these; beyond the sequence's last box that box again."""
        p, places = self.problem, self.arrays[self.places].reshape(-1)
        marks = self.chip.marks(self.places)
        if not p.page:
            load_vector(count, marks, INDEX * part.sequence, INDEX)
            row = int(places[part.sequence]) + block * BLOCK_N
            self._load(count, self.cache, p.kv_rows, row, tile)
            return
        rows = min(p.page, BLOCK_N)
        final = max((int(self.plan.kv_lens[part.sequence]) - 1) // rows * rows, 0)
        tokens = np.minimum(block * BLOCK_N + np.arange(0, BLOCK_N, rows), final)
        at = part.sequence * p.pages_per_sequence + tokens // p.page
        load_vector(count, marks, INDEX * int(at[0]), INDEX * int(at[-1] - at[0] + 1))
        pages = np.clip(places[at], 0, p.pool_pages - 1)
        for i, row in enumerate((pages * p.page + tokens % p.page).tolist()):
            self._load(count, self.cache, p.pool_pages * p.page, row, tile[i * rows : (i + 1) * rows])

    def _store(self, count: Count, part: Part, rank: int, y: NDArray, exponent: NDArray, total: NDArray) -> None:
        """A CTA's rows to y and lse, or to the slot of a partial result."""
        p, live, shared = self.problem, part.live(rank), part.slot >= 0
        row = (part.slot * self.plan.rows if shared else part.row) + rank * BLOCK_M
        nbytes = (FLOAT if shared else SIZE) * p.value_dim
        store_vector(count, self.chip.marks("partial" if shared else "y"), nbytes * row, nbytes * live)
        if shared or p.lse:
            marks = self.chip.marks("partial_lse" if shared else "lse")
            for first in range(0, live, 8):
                store_vector(count, marks, FLOAT * (row + first), FLOAT * min(8, live - first))
        if self.numerics:
            with np.errstate(divide="ignore"):
                lse = np.where(total > 0, (exponent + np.log2(total)) * LN_2, -np.inf).astype(np.float32)
            self._write("partial" if shared else "y", row, y[:live])
            if shared or p.lse:
                self.arrays["partial_lse" if shared else "lse"].reshape(-1)[row : row + live] = lse[:live]

    def _write(self, name: str, row: int, y: NDArray[np.float32]) -> None:
        target = self.arrays[name].reshape(-1, self.problem.value_dim)
        target[row : row + len(y)] = y if name == "partial" else encode(y, self.problem.output)

    def _join(self, count: Count, row: int, own: int, partials: Partials) -> None:
        """A row of y from its partial results, whose log-sum-exps are read twice: for the largest, and as weights."""
        p, marks = self.problem, self.chip.marks
        at = [partials.slot(partial) * self.plan.rows + own for partial in range(partials.workers)]
        for one in (*at, *at):
            load_vector(count, marks("partial_lse"), FLOAT * one, FLOAT)
        for one in at:
            load_vector(count, marks("partial"), FLOAT * p.value_dim * one, FLOAT * p.value_dim)
        count_exp(count, partials.workers)
        store_vector(count, marks("y"), SIZE * p.value_dim * row, SIZE * p.value_dim)
        if p.lse:
            store_vector(count, marks("lse"), FLOAT * row, FLOAT)
        if self.numerics:
            lse: Any = self.arrays["partial_lse"][at]
            base = np.float32(lse.max()) if lse.max() > -np.inf else np.float32(0)
            weights = np.exp(lse - base, dtype=np.float32)
            total = weights.sum()
            sums = weights @ self.arrays["partial"][at]
            self._write("y", row, (sums * (1 / total if total > 0 else np.float32(0)))[None])
            if p.lse:
                self.arrays["lse"].reshape(-1)[row] = base + np.log(total) if total > 0 else -np.inf
