"""Clusters share a tile's k-steps, so that few rows keep all SMs loading; sums meet in distributed shared memory."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Solves, require_choice, require_shared
from lab.kernels.gemm import _tiles
from lab.kernels.gemm._tiles import FACTS, MMA_M, STEP_BYTES, Tiling, box_columns, step_of, tile_at, tiles_of
from lab.problems import Linear
from sim.counts import Counts
from sim.errors import ScheduleError
from sim.jit import njit, prange
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import ELEMENT, Chip, load_tile, mma, store_tile

SOLVES = Solves(
    Linear,
    weights=("bf16", "fp16"),
    arch="sm_90a",
    row_bytes=16,
    why_multiple="TMA needs rows that are multiples of 16 bytes",
    after="gemm_warp_specialized",
    facts=FACTS,
)

FLOAT = 4  # bytes of an accumulator
BOX_COLUMNS = 16  # of y: the least that leaves in whole sectors
OTHER_REGISTERS = 40  # a thread's registers beside its accumulators, at most


@dataclass(frozen=True)
class Schedule(Tiling):
    """The tile of a cluster, 64 rows for each warpgroup of a CTA, and the ring of each CTA."""

    split_k: int  # CTAs of a cluster, that share the k-steps of a tile and then its columns
    ctas_per_sm: int  # CTAs that an SM holds at once

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "split_k", (1, 2, 4, 8))
        require_choice(self, "ctas_per_sm", (1, 2))
        if self.block_n % (BOX_COLUMNS * self.split_k):
            raise ScheduleError(
                f"each of {self.split_k} CTAs stores whole boxes of {BOX_COLUMNS} columns; "
                f"block_n = {self.block_n} is no multiple of {BOX_COLUMNS * self.split_k}"
            )

    @property
    def part(self) -> int:
        """Columns of y that a CTA sums and stores."""
        return self.block_n // self.split_k

    @property
    def group_m(self) -> int:
        """All rows of tiles, column by column: CTAs that run together share w, which is read once, in L2."""
        return 1024

    @property
    def threads(self) -> int:
        return 2 * self.block_m + 32

    @property
    def y_bytes(self) -> int:
        """All that a warpgroup rounds, in the place of the ring."""
        return MMA_M * self.part * 2

    @property
    def inbox_bytes(self) -> int:
        """What the other CTAs of the cluster send."""
        return (self.split_k - 1) * self.block_m * self.part * FLOAT

    @property
    def shared_bytes(self) -> int:
        return self.ring_bytes + self.inbox_bytes

    def fits(self, problem: Linear, machine: Machine) -> None:
        steps = tiles_of(problem.k, step_of(problem))
        if steps < self.split_k:
            raise ScheduleError(f"each of {self.split_k} CTAs takes a k-step or more; k = {problem.k} has {steps}")
        require_shared(self.shared_bytes, f"{self.stages} stages and {self.split_k - 1} inboxes", machine)
        reserved = machine.shared_bytes_per_sm - machine.shared_bytes_per_block  # by the system, for each CTA
        shared = self.ctas_per_sm * (self.shared_bytes + reserved)
        if shared > machine.shared_bytes_per_sm:
            raise ScheduleError(
                f"{self.ctas_per_sm} CTAs need {shared:,} B of shared memory; "
                f"an SM of the {machine.title} has {machine.shared_bytes_per_sm:,} B"
            )
        threads, accumulators = self.ctas_per_sm * self.threads, self.block_n // 2
        registers = threads * (accumulators + OTHER_REGISTERS)
        if registers > machine.registers_per_sm:
            raise ScheduleError(
                f"{threads} threads with {accumulators} accumulators each need {registers:,} registers; "
                f"an SM of the {machine.title} has {machine.registers_per_sm:,}"
            )


TRIED = 32  # schedules that are worth trying
STAGES = 12  # more brings nothing: the bytes in flight already cover the latency several times


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """The schedules of least predicted time among all tiles and splits, each with as many stages as fit."""
    heights = [block_m for block_m in (64, 128, 192, 256) if block_m < problem.m + MMA_M]
    found = [
        deepest
        for block_m, block_n, split_k, ctas in product(heights, _tiles.WIDTHS, (1, 2, 4, 8), (1, 2))
        for deepest in _deepest(problem, block_m, block_n, split_k, ctas, machine)
    ]
    yield from sorted(found, key=lambda s: predicted_us(problem, s, machine))[:TRIED]


def _deepest(
    problem: Linear, block_m: int, block_n: int, split_k: int, ctas: int, machine: Machine
) -> Iterator[Schedule]:
    """The schedule with the longest ring that fits and that its k-steps fill; none where none is legal."""
    longest = min(STAGES, max(2, tiles_of(tiles_of(problem.k, step_of(problem)), split_k)))
    for stages in range(longest, 1, -1):
        with suppress(ScheduleError):
            schedule = Schedule(block_m, block_n, stages, split_k, ctas)
            schedule.fits(problem, machine)
            yield schedule
            return


# What the estimate is made of, measured on an H100 where it says so; each can be fitted again from records.
START_US = 1.6  # launch in a graph and the first bytes: intercept of a plain read's time over its bytes (measured)
HBM_SHARE = 0.96  # of the data sheet's bandwidth that a plain read reaches: the slope of the same line (measured)
L2_BYTES_PER_CLOCK = 40  # to each SM when all ask: machine.l2_bandwidth over its SMs and clock
SM_BYTES_PER_CLOCK = 64  # that one SM can take from L2
SHARED_BYTES_PER_CLOCK = 128  # that wgmma reads of an SM's shared memory (32 banks of 4 bytes)
LATENCY_CLOCKS = 1000  # from asking for a stage to its first bytes, HBM being busy
DSMEM_BYTES_PER_CLOCK = 14  # between SMs, each way (Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU")
MEET_CLOCKS = 800  # of a reduction beside its bytes: the CTAs of a cluster end one after the other; one trip
ROUND_CLOCKS = 450  # of a warpgroup for 64 x 64 outputs on their way out
FILL_CLOCKS = 2000  # of every further wave: barriers, one trip to HBM; a second CTA on the SM hides half of it
BLEND = 4  # exponent of the norm that joins HBM's time with that of the k-steps: near a tie, each delays the other
GPC_SMS = 16  # SMs that every GPC has; a cluster lies in one GPC


def clusters_at_once(schedule: Schedule, machine: Machine) -> int:
    """Clusters that run at the same time, as some GPCs have two SMs more than the others (132 = 6 x 16 + 2 x 18)."""
    smallest = min(GPC_SMS, machine.sms)
    gpcs, more = machine.sms // smallest, machine.sms % smallest // 2
    small, large = (schedule.ctas_per_sm * sms // schedule.split_k for sms in (smallest, smallest + 2))
    return max(1, (gpcs - more) * small + more * large)


def predicted_us(problem: Linear, schedule: Schedule, machine: Machine) -> float:
    """Microseconds in a graph: a start, little more than the larger of HBM's time and that of all k-steps, the way out.

    A k-step takes as long as the tensor cores, the shared memory they read, L2, or a turn of the ring need, whichever
    is longest; x and w come from HBM once. Each wave after the first fills its ring anew.
    """
    p, s = problem, schedule
    tiles, at_once = _tiles.tile_count(p, s.block_m, s.block_n), clusters_at_once(s, machine)
    waves, steps = tiles_of(tiles, at_once), tiles_of(tiles_of(p.k, step_of(p)), s.split_k)
    resident = min(s.ctas_per_sm, tiles_of(s.split_k * tiles, machine.sms))  # CTAs that share an SM
    busy = min(machine.sms, s.split_k * min(tiles, at_once))
    mma = 2 * s.block_m * s.block_n * step_of(p) * machine.sms * machine.clock_hz / machine.peak(p.activations)
    operands = s.block_m // MMA_M * (MMA_M + s.block_n) * STEP_BYTES / SHARED_BYTES_PER_CLOCK
    rows = min(s.block_m, p.m) + s.block_n  # what lies beyond x is not loaded
    loads = rows * STEP_BYTES / min(SM_BYTES_PER_CLOCK, L2_BYTES_PER_CLOCK * machine.sms / busy)
    turn = (LATENCY_CLOCKS + resident * loads) / (s.stages - 1)  # of a ring: one stage is read while the rest fill
    stream = waves * steps * max(resident * mma, resident * operands, resident * loads, turn)
    hbm = (p.read_bytes + p.write_bytes) / (HBM_SHARE * machine.hbm_bandwidth) * machine.clock_hz
    meet = MEET_CLOCKS + resident * s.inbox_bytes / DSMEM_BYTES_PER_CLOCK if s.split_k > 1 else 0
    way_out = meet + resident * ROUND_CLOCKS * s.part / MMA_M
    between = (waves - 1) * (FILL_CLOCKS + way_out) / resident
    body = ((stream + between) ** BLEND + hbm**BLEND) ** (1 / BLEND)
    return float(START_US + 1e6 * (body + way_out) / machine.clock_hz)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    s = schedule
    return (
        Launch(
            kernel="gemm_split_k",
            entry="gemm_split_k",
            problem=problem,
            schedule=s,
            grid=(s.split_k * _tiles.tile_count(problem, s.block_m, s.block_n), 1, 1),
            block=(s.threads, 1, 1),
            arguments=_tiles.arguments(problem, s.part, s.block_m, s.block_n),
            cluster=(s.split_k, 1, 1),
            shared_bytes=s.shared_bytes,
            dependent=True,
        ),
    )


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """As without a split, but for y, which leaves in the boxes of each CTA's own columns."""
    s = schedule
    whole = _tiles.theory(problem, s.block_m, s.block_n, tiles_of(problem.m, s.block_m))
    return replace(whole, sm_to_l2_bytes=_tiles.theory(problem, s.block_m, s.part, 1).sm_to_l2_bytes)


def simulate(launch: Launch, arrays: Mapping[str, NDArray] | None, machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = Chip(launch, machine)
    x, w, y = (arrays[a.name] if arrays else np.zeros((0, 0), a.storage) for a in launch.arrays)
    marks = [chip.marks(name) for name in ("x", "w", "y")]
    _grid(
        chip.count, *marks, x, w, y, p.m, p.n, p.k, launch.ctas // s.split_k, s.block_m, s.block_n, s.split_k,
        s.group_m, step_of(p), box_columns(p, s.part), ELEMENT[p.activations], ELEMENT[p.output],
    )  # fmt: skip
    return chip.counts()


@njit(cache=True, parallel=True)
def _grid(
    count, x_marks, w_marks, y_marks, x, w, y, m, n, k, tiles, block_m, block_n, split_k, group_m, step, box, element,
    output,
):  # fmt: skip
    workers = count.shape[0]
    steps, part = -(-k // step), block_n // split_k
    for worker in prange(workers):
        counter = count[worker]
        x_tile = np.empty((block_m, step), np.float32)
        w_tile = np.empty((step, block_n), np.float32)  # transposed on its way in, as the mma wants it
        sums = np.empty((split_k, block_m, block_n), np.float32)
        for index in range(worker, tiles, workers):
            row, column = tile_at(index, m, n, block_m, block_n, group_m)
            sums[:] = 0
            for rank in range(split_k):
                for at in range(rank * steps // split_k, (rank + 1) * steps // split_k):
                    load_tile(counter, w_marks, w, n, k, column, at * step, w_tile.T, element)
                    load_tile(counter, x_marks, x, m, k, row, at * step, x_tile, element)
                    mma(counter, sums[rank], x_tile, w_tile, m - row, n - column, k - at * step, x.size > 0)
            for rank in range(split_k):
                first = rank * part
                own = sums[rank, :, first : first + part].copy()
                for distance in range(1, split_k):
                    own += sums[(rank + distance) % split_k, :, first : first + part]
                for r in range(0, block_m, MMA_M):
                    for c in range(0, part, box):
                        out = own[r : r + MMA_M, c : c + box]
                        store_tile(counter, y_marks, y, m, n, row + r, column + first + c, out, output)
