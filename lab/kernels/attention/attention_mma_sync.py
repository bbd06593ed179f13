"""Scores stay in registers: blocks of keys come by cp.async, softmax runs along, and nothing is quadratic in memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Bills, Solves, require_choice, require_shared
from lab.kernels.attention import prefill, prefill_simulation, prefill_theory
from lab.problems import Attention
from sim.counts import SECTOR, Counts, sectors
from sim.errors import ScheduleError
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import SimulatedChip

SOLVES = Solves(
    Attention,
    formats=("bf16", "fp16"),
    arch="sm_80",
    after="attention_naive",
    options={**prefill.TILE_OPTIONS, "page": (1, *prefill.PAGES), "window": prefill.WINDOWS, "lse": (True,)},
    facts=(*prefill.FACTS, "packed"),
)


@dataclass(frozen=True)
class Schedule(prefill.TilePerCta):
    """The tile of a CTA."""

    block_m: int  # rows of a tile of queries: tokens, each with all query heads of a KV head
    block_n: int  # keys in a block

    def __post_init__(self) -> None:
        require_choice(self, "block_m", (64, 128))
        require_choice(self, "block_n", (32, 64, 128))

    @property
    def warps(self) -> int:
        """Each with 16 rows."""
        return self.block_m // prefill.WARP_ROWS

    @property
    def threads(self) -> int:
        return prefill.LANES * self.warps

    @property
    def shared_rows(self) -> int:
        """Rows of head_dim elements in shared memory: queries, keys, values."""
        return self.block_m + 2 * self.block_n

    @property
    def further_shared_bytes(self) -> int:
        return 0

    def fits(self, problem: Attention, machine: Machine) -> None:
        if problem.group > self.block_m:
            raise ScheduleError(
                f"a tile of {self.block_m} rows has no room for the {problem.group} query heads of a KV head"
            )
        what = f"tiles of {self.block_m} queries and {self.block_n} keys"
        require_shared(prefill.shared_bytes(problem, self), what, machine)


SHAPES = ((64, 64), (128, 64), (128, 128), (64, 32))  # rows, keys


def candidates(problem: Attention, machine: Machine) -> Iterator[Schedule]:
    yield from prefill.fitting((Schedule(*shape) for shape in SHAPES), problem, machine)


def launch(problem: Attention, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return prefill.tile_launch("attention_mma_sync", problem, schedule, prefill.pointers(problem))


def bills(problem: Attention, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    return prefill_theory.bills("attention_mma_sync", problem, schedule, machine, clock)


def theory(problem: Attention, schedule: Schedule, machine: Machine) -> Counts:
    """As prefill's, but rows are copied by warps, each of which reads the lengths, and only those that are there."""
    p, s = problem, schedule
    rows = tables = 0
    for b, sequence in enumerate(p.sequences):
        of = prefill.tiles(p, sequence, s)
        before = np.minimum(np.arange(-(-sequence.kv_len // s.block_n) + 1) * s.block_n, sequence.kv_len)
        rows += 2 * int((before[of.last] - before[of.first]).sum()) + p.group * int(of.tokens[of.last > of.first].sum())
        if p.page:
            asked = np.concatenate(([0], np.cumsum(_table_sectors(p, b, sequence.kv_len, s.block_n))))
            tables += 2 * int((asked[of.last] - asked[of.first]).sum())
    row = prefill.SIZE * p.head_dim // SECTOR
    loads = prefill_theory.lengths_read(p) * s.warps * prefill.tile_count(p, s) + p.kv_heads * (tables + rows * row)
    return replace(
        prefill_theory.theory(p, s), global_load_sectors=loads, tma_load_bytes=0, l2_to_sm_bytes=SECTOR * loads
    )


def _table_sectors(problem: Attention, b: int, keys: int, block_n: int) -> NDArray[np.int64]:
    """Sectors of the block table that a copy of each block asks for: one request for the rows of a warp's request."""
    p, together = problem, prefill.request_rows(problem.head_dim)
    asked = np.zeros(-(-keys // block_n), np.int64)
    for key in range(0, keys, together):
        first, last = key // p.page, (min(key + together, keys) - 1) // p.page
        entry, entries = b * p.pages_per_sequence + first, last - first + 1
        asked[key // block_n] += sectors(prefill.INDEX * entry, prefill.INDEX * entries)
    return asked


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    chip = SimulatedChip(launch, machine)
    prefill_simulation.simulate(launch, arrays, chip, launch.schedule.warps)
    return chip.counts()
