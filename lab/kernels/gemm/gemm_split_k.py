"""Clusters share a tile's k-steps, so that few rows keep all SMs loading; sums meet in distributed shared memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product

import numpy as np
from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import RANKING_CLOCK, Bills, Solves, require_choice, require_resident, require_shared
from lab.kernels.common import clusters
from lab.kernels.common.norm import joined
from lab.kernels.common.raster import tile_at, tiles_of
from lab.kernels.common.rings import deepest
from lab.kernels.gemm import wgmma_mainloop, wgmma_model
from lab.kernels.gemm.wgmma_mainloop import FACTS, MMA_M, STEP_BYTES, Tiling, box_columns, step_of
from lab.problems import Linear
from sim.counts import Counts
from sim.errors import ScheduleError
from sim.jit import njit
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import ELEMENT, SimulatedChip, load_tile, mma, store_tile

SOLVES = Solves(
    Linear,
    formats=("bf16", "fp16"),
    arch="sm_90a",
    row_bytes=16,
    why_multiple="TMA needs rows that are multiples of 16 bytes",
    after="gemm_warp_specialized",
    facts=FACTS,
)

FLOAT = 4  # bytes of an accumulator
BOX_COLUMNS = 16  # of y: the least that is stored in whole sectors
OTHER_REGISTERS = 32  # a thread's registers beside its accumulators, at most


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
        registers = self.block_n // 2 + OTHER_REGISTERS
        require_resident(self.ctas_per_sm, self.shared_bytes, self.threads, registers, machine)


TRIED = 48  # schedules that are worth trying
STAGES = 12  # more brings nothing: the bytes in flight already cover the latency several times


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """The schedules of least predicted time among all tiles and splits, each with the longest ring that fits."""
    steps = tiles_of(problem.k, step_of(problem))
    endless = replace(problem, m=1, n=BOX_COLUMNS, k=8 * STAGES * STEP_BYTES)
    found = [
        replace(s, stages=min(s.stages, max(2, tiles_of(steps, s.split_k))))
        for block_m in (64, 128, 192, 256)
        if block_m < problem.m + MMA_M
        for s in _deepest(endless, block_m, machine)
        if s.split_k <= steps
    ]
    yield from sorted(found, key=lambda s: bills(problem, s, machine, RANKING_CLOCK).us)[:TRIED]


@cache  # it depends on a problem's formats alone, so that a choice for another shape has it
def _deepest(problem: Linear, block_m: int, machine: Machine) -> tuple[Schedule, ...]:
    """The schedules of a height with the longest rings that fit."""
    return tuple(
        schedule
        for block_n, split_k, ctas in product(wgmma_mainloop.WIDTHS, (1, 2, 4, 8), (1, 2))
        for schedule in deepest(partial(_ring, block_m, block_n, split_k, ctas), STAGES, problem, machine)
    )


def _ring(block_m: int, block_n: int, split_k: int, ctas: int, stages: int) -> Schedule:
    return Schedule(block_m, block_n, stages, split_k, ctas)


class Coefficients(fits.Coefficients, frozen=True):
    """What the estimate is made of, beside what all wgmma GEMMs share."""

    start_us: float  # of a launch
    hbm_share: float  # of the rate of a large read
    read_again: float  # of w that each further row of tiles brings from HBM again
    l2_bytes_per_clock: float  # to each SM when all ask, if nothing else took time
    crossing_rows: float  # times the clocks of a row of 128 bytes that crosses a 128-byte line
    beyond_clocks: float  # of a row that a box asks for beyond x or w: 1 to 15 were seen
    latency_clocks: float  # from asking for a stage to its bytes, HBM being busy
    reduce_bytes_per_clock: float  # of the inboxes, from the last mma to their sum
    wave_clocks: float  # of a CTA that follows another on its SM: it starts late, and alone
    step_blend: float  # exponent of the norm that joins what a k-step waits for: near a tie, each delays the other
    hbm_blend: float  # the same of all k-steps with HBM
    cool_share: float  # as all wgmma GEMMs', of theirs
    hot: float


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """A start, little more than the larger of HBM's time and all k-steps', the epilogue.

    A k-step takes little more than the longest of what the tensor cores, shared memory, L2, or a turn of the ring need.
    """
    p, s = problem, schedule
    model = fits.coefficients(Coefficients, "gemm_split_k", machine, clock)
    wgmma = wgmma_model.coefficients(machine, clock)
    tiles_m, tiles_n = tiles_of(p.m, s.block_m), tiles_of(p.n, s.block_n)
    tiles, at_once = tiles_m * tiles_n, clusters.resident(s.split_k, s.ctas_per_sm, machine)
    waves, steps = tiles_of(tiles, at_once), tiles_of(tiles_of(p.k, step_of(p)), s.split_k)
    resident = clusters.fullest(s.split_k, tiles, s.ctas_per_sm, machine)  # CTAs that share an SM
    last = tiles - (waves - 1) * at_once  # clusters of the last wave
    full = (waves - 1) * resident + clusters.fullest(s.split_k, last, s.ctas_per_sm, machine)  # CTAs, in all waves
    busy = min(1.0, s.split_k * min(tiles, at_once) / machine.sms)

    mma = 2 * s.block_m * s.block_n * step_of(p) * machine.sms * machine.clock_hz / machine.peak(p.activations)
    operands = s.block_m // MMA_M * (MMA_M + s.block_n) * STEP_BYTES / machine.shared_bytes_per_clock
    rows = min(p.m, s.block_m)  # of a box of x
    beyond = -p.m % rows + -p.n % s.block_n
    row = STEP_BYTES / model.l2_bytes_per_clock * busy * (model.crossing_rows if wgmma_model.crosses_lines(p) else 1)
    loads = (rows + s.block_n - beyond) * row + beyond * model.beyond_clocks * busy
    turn = (model.latency_clocks / resident + loads) / (s.stages - 1)  # of a ring: one stage is read, the rest fill
    step = {"tensor cores": mma, "shared memory": operands, "L2": loads, "latency": turn}

    inboxes = s.inbox_bytes / model.reduce_bytes_per_clock
    epilogue = resident * (inboxes + wgmma.round_clocks * s.part / MMA_M)
    again = model.read_again * (tiles_m - 1) * p.bytes["weights"]
    clock_hz = fits.sm_clock_hz(machine)
    hbm = (p.read_bytes + p.write_bytes + again) / (model.hbm_share * fits.read_rate(machine)) * clock_hz
    waiting = (waves - 1) * (model.wave_clocks + epilogue) / resident
    stream = full * steps * joined(model.step_blend, *step.values()) + waiting
    cool = model.start_us + 1e6 * (joined(model.hbm_blend, stream, hbm) + epilogue) / clock_hz
    clocks = {"HBM": hbm, **{what: full * steps * each for what, each in step.items()}}
    clocks |= {"waves": waiting, "epilogue": epilogue}
    parts = {"launch": model.start_us, **{w: 1e6 * c / clock_hz for w, c in clocks.items()}}
    working = min(1.0, s.split_k * tiles / (full * machine.sms))
    parts["power cap"] = wgmma_model.power_cap(
        parts["tensor cores"], cool, working, wgmma.hot_us, model.cool_share, model.hot
    )
    return Bills(cool + parts["power cap"], parts, apart=("launch", "epilogue", "power cap"))


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    s = schedule
    return (
        Launch(
            kernel="gemm_split_k",
            entry="gemm_split_k",
            problem=problem,
            schedule=s,
            grid=(s.split_k * wgmma_mainloop.tile_count(problem, s.block_m, s.block_n), 1, 1),
            block=(s.threads, 1, 1),
            arguments=wgmma_mainloop.arguments(problem, s.part, min(problem.m, s.block_m), s.block_n),
            cluster=(s.split_k, 1, 1),
            shared_bytes=s.shared_bytes,
            dependent=True,
        ),
    )


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """As without a split, but for y, stored in boxes of each CTA's own columns, and x, in boxes of at most m rows."""
    p, s = problem, schedule
    whole = wgmma_mainloop.theory(p, s)
    steps = tiles_of(p.k, step_of(p)) * wgmma_mainloop.tile_count(p, s.block_m, s.block_n)
    return replace(
        whole,
        tma_load_bytes=steps * (min(p.m, s.block_m) + s.block_n) * STEP_BYTES,
        sm_to_l2_bytes=wgmma_mainloop.tiled_theory(p, s.block_m, s.part, 1).sm_to_l2_bytes,
    )


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    x, w, y = (arrays[a.name] if arrays else np.zeros((0, 0), a.storage) for a in launch.arrays)
    marks = [chip.marks(name) for name in ("x", "w", "y")]
    chip.on_all_cores(
        _grid, chip.count, *marks, x, w, y, p.m, p.n, p.k, launch.ctas // s.split_k, s.block_m, s.block_n, s.split_k,
        s.group_m, step_of(p), box_columns(p, s.part), ELEMENT[p.activations], ELEMENT[p.output],
    )  # fmt: skip
    return chip.counts()


@njit(cache=True, nogil=True)
def _grid(
    core, cores,
    count, x_marks, w_marks, y_marks, x, w, y, m, n, k, tiles, block_m, block_n, split_k, group_m, step, box, element,
    output,
):  # fmt: skip
    workers = count.shape[0]
    steps, part = -(-k // step), block_n // split_k
    for worker in range(core, workers, cores):
        counter = count[worker]
        x_tile = np.zeros((block_m, step), np.float32)
        w_tile = np.empty((step, block_n), np.float32)  # transposed on its way in, as the mma wants it
        sums = np.empty((split_k, block_m, block_n), np.float32)
        for index in range(worker, tiles, workers):
            row, column = tile_at(index, m, n, block_m, block_n, group_m)
            sums[:] = 0
            for rank in range(split_k):
                for at in range(rank * steps // split_k, (rank + 1) * steps // split_k):
                    load_tile(counter, w_marks, w, n, k, column, at * step, w_tile.T, element)
                    load_tile(counter, x_marks, x, m, k, row, at * step, x_tile[: min(block_m, m)], element)
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
