"""cp.async fills a ring of swizzled tiles, ldmatrix and mma.sync multiply them: tensor cores as Ampere has them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import RANKING_CLOCK, Bills, Solves, require_choice, require_shared
from lab.kernels.common import linear
from lab.kernels.common.raster import Walk, requests, require_group, tile_at, tiles_of
from lab.kernels.gemm import wgmma_mainloop, wgmma_model
from lab.problems import Linear
from sim.cache.walk import Requests
from sim.counts import SECTOR, Counts, box_sectors, sectors
from sim.errors import ScheduleError
from sim.formats import decode, encode
from sim.jit import njit
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import SimulatedChip, load_patch, mma, store_patch

SOLVES = Solves(
    Linear,
    formats=("bf16", "fp16"),
    arch="sm_80",
    row_bytes=16,
    why_multiple="rows are copied in 16-byte vectors",
    after="gemm_naive",
)

LANES = 32
SIZE = 2  # bytes of an element of x, w and y
CHUNK = 8  # elements in 16 bytes
OTHER_REGISTERS = 50  # a thread's registers beside its accumulators and fragments, at most


@dataclass(frozen=True)
class Schedule:
    """The tile of a CTA, its warps, its ring."""

    block_m: int  # rows of y in a tile
    block_n: int  # columns of y in a tile
    block_k: int  # elements along k in a stage
    warps_m: int  # warps that share the rows of a tile
    warps_n: int  # warps that share its columns
    stages: int  # k-steps that the ring holds
    ctas_per_sm: int  # CTAs that an SM holds at once; one computes while the other waits or stores
    group_m: int  # tile rows walked together, so that x and w are shared in L2

    def __post_init__(self) -> None:
        require_choice(self, "block_m", (64, 128, 256))
        require_choice(self, "block_n", (64, 128, 256))
        require_choice(self, "block_k", (32, 64))
        require_choice(self, "warps_m", (1, 2, 4, 8))
        require_choice(self, "warps_n", (1, 2, 4, 8))
        require_choice(self, "ctas_per_sm", (1, 2, 3, 4))
        for side, warps, part in (("block_m", "warps_m", self.warp_m), ("block_n", "warps_n", self.warp_n)):
            if part not in (32, 64):
                block, shared_by = getattr(self, side), getattr(self, warps)
                raise ScheduleError(f"a warp takes 32 or 64 of {side}; {block} / {shared_by} warps is {part}")
        at_once = self.threads // (self.block_k // CHUNK)
        if min(self.block_m, self.block_n) < at_once:
            raise ScheduleError(
                f"{self.threads} threads copy {at_once} rows at once; the tile is {self.block_m} x {self.block_n}"
            )
        if self.stages < 2:
            raise ScheduleError(f"a ring has 2 stages or more; stages = {self.stages}")
        require_group(self.group_m)

    @property
    def warp_m(self) -> int:
        return self.block_m // self.warps_m

    @property
    def warp_n(self) -> int:
        return self.block_n // self.warps_n

    @property
    def threads(self) -> int:
        return LANES * self.warps_m * self.warps_n

    @property
    def stage_bytes(self) -> int:
        return SIZE * (self.block_m + self.block_n) * self.block_k

    @property
    def shared_bytes(self) -> int:
        """The ring, or in its place the tile of y."""
        return max(self.stages * self.stage_bytes, SIZE * self.block_m * self.block_n)

    def fits(self, problem: Linear, machine: Machine) -> None:
        require_shared(self.shared_bytes, f"{self.stages} stages", machine)
        shared = self.ctas_per_sm * (self.shared_bytes + machine.reserved_shared_bytes)
        if shared > machine.shared_bytes_per_sm:
            raise ScheduleError(
                f"{self.ctas_per_sm} CTAs need {shared:,} B of shared memory; "
                f"an SM of the {machine.title} has {machine.shared_bytes_per_sm:,} B"
            )
        accumulators = self.warp_m * self.warp_n // LANES
        fragments = 2 * (self.warp_m + self.warp_n) * 16 // (2 * LANES)  # pairs of 16 along k, twice
        registers = self.ctas_per_sm * self.threads * (accumulators + fragments + OTHER_REGISTERS)
        if registers > machine.registers_per_sm:
            raise ScheduleError(
                f"{self.ctas_per_sm * self.threads} threads with {accumulators} accumulators and {fragments} registers "
                f"of fragments need {registers:,} registers; an SM of the {machine.title} has "
                f"{machine.registers_per_sm:,}"
            )


SHAPES = (  # block_m, block_n, block_k, warps_m, warps_n, CTAs an SM
    (128, 256, 64, 2, 4, 1),
    (256, 128, 64, 4, 2, 1),
    (128, 256, 32, 2, 4, 1),
    (256, 128, 32, 4, 2, 1),
    (128, 128, 64, 2, 2, 2),
    (128, 128, 32, 2, 2, 2),
    (64, 256, 32, 1, 4, 2),
    (128, 128, 64, 2, 4, 1),
    (128, 64, 64, 2, 2, 3),
    (64, 128, 64, 2, 2, 3),
    (64, 128, 64, 2, 4, 2),
    (64, 64, 64, 2, 2, 4),
)
MAX_STAGES = 4


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Tile shapes by predicted time, then by padding, with as deep a ring as an SM holds, up to four stages."""

    def rank(schedule: Schedule) -> tuple[float, int]:
        us = bills(problem, schedule, machine, RANKING_CLOCK).us
        return round(us, 2), theory(problem, schedule, machine).mma_flops or 0

    found = []
    for block_m, block_n, block_k, warps_m, warps_n, ctas in SHAPES:
        room = min(machine.shared_bytes_per_sm // ctas - machine.reserved_shared_bytes, machine.shared_bytes_per_block)
        stages = min(MAX_STAGES, room // (SIZE * (block_m + block_n) * block_k))
        if stages >= 2:
            found.append(Schedule(block_m, block_n, block_k, warps_m, warps_n, stages, ctas, group_m=1024 // block_m))
    yield from sorted(found, key=rank)


class Coefficients(fits.Coefficients, frozen=True):
    """What the estimate is made of."""

    start_us: float  # of a launch
    fill_clocks: float  # launch to first mma
    round_clocks: float  # of the epilogue of 64 x 64 outputs of a warpgroup
    mma_share: float  # of the tensor cores' peak, what mma.sync reaches; the rest may take wgmma


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """Waves of tiles, each bound by the largest of an SM's three bills, or HBM.

    Tensor cores; L2; shared memory, which takes each operand once from cp.async and gives it to every warp that shares
    it. The CTAs of an SM compute side by side, and so do their epilogues.
    """
    s, model = schedule, fits.coefficients(Coefficients, "gemm_mma_sync", machine, clock)
    flops_per_clock = model.mma_share * machine.peak(problem.weights) / machine.sms / machine.clock_hz
    shared = SIZE * (s.block_m * (1 + s.warps_n) + s.block_n * (1 + s.warps_m))
    step = {
        "tensor cores": 2 * s.block_m * s.block_n / flops_per_clock,
        "L2": SIZE * (s.block_m + s.block_n) / wgmma_model.port(machine),
        "shared memory": shared / machine.shared_bytes_per_clock,
    }
    depth = tiles_of(problem.k, s.block_k) * s.block_k
    epilogue = model.round_clocks * s.warp_m * s.warp_n / (64 * 64) * 4  # four times a warp's rows: a warpgroup's
    tiles = wgmma_mainloop.tile_count(problem, s.block_m, s.block_n)
    resident = min(s.ctas_per_sm, tiles_of(tiles, machine.sms))  # CTAs of an SM
    waves = tiles_of(tiles, machine.sms * resident)
    clocks = model.fill_clocks + waves * (resident * (depth * max(step.values())) + epilogue)
    counts = theory(problem, s, machine)
    moved = ((counts.hbm_read_bytes or 0) + (counts.hbm_write_bytes or 0)) / machine.hbm_bandwidth
    us = 1e6 / machine.clock_hz
    return Bills(
        model.start_us + 1e6 * max(clocks / machine.clock_hz, moved),
        {
            "launch": model.start_us,
            "HBM": 1e6 * moved,
            **{what: waves * resident * depth * each * us for what, each in step.items()},
            "fill and epilogue": (model.fill_clocks + waves * epilogue) * us,
        },
        apart=("launch", *(("fill and epilogue",) if clocks / machine.clock_hz > moved else ())),
    )


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return (
        Launch(
            kernel="gemm_mma_sync",
            entry="gemm_mma_sync",
            problem=problem,
            schedule=schedule,
            grid=(wgmma_mainloop.tile_count(problem, schedule.block_m, schedule.block_n), 1, 1),
            block=(schedule.threads, 1, 1),
            arguments=linear.arguments(problem),
            shared_bytes=schedule.shared_bytes,
        ),
    )


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """Each column of tiles loads x, each row of tiles loads w, block_k columns a request; y is stored by warp tiles."""
    p, s = problem, schedule
    tiles_m, tiles_n, steps = tiles_of(p.m, s.block_m), tiles_of(p.n, s.block_n), tiles_of(p.k, s.block_k)
    loads = tiles_n * _column_sectors(p.m, p.k, s.block_k) + tiles_m * _column_sectors(p.n, p.k, s.block_k)
    stores = _column_sectors(p.m, p.n, s.warp_n)
    return Counts(
        flops=p.flops,
        mma_flops=2 * tiles_m * s.block_m * tiles_n * s.block_n * steps * s.block_k,
        exp_count=0,
        global_load_sectors=loads,
        global_store_sectors=stores,
        tma_load_bytes=0,
        l2_to_sm_bytes=SECTOR * loads,
        sm_to_l2_bytes=SECTOR * stores,
        hbm_read_bytes=SECTOR * (sectors(0, SIZE * p.m * p.k) + sectors(0, SIZE * p.n * p.k)),
        hbm_write_bytes=SECTOR * sectors(0, SIZE * p.m * p.n),
    )


def _column_sectors(rows: int, columns: int, width: int) -> int:
    """Sectors of a matrix requested in columns of `width`, whole rows of 16-byte vectors a request.

    Rows narrower than that adjoin, and a request counts a sector that two of its rows share once; requests then begin
    at whole sectors.
    """
    if columns <= width:
        return sectors(0, SIZE * rows * columns)
    return box_sectors(rows, SIZE * columns, SIZE * width)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    nothing = np.zeros((0, 0), np.float32)
    x, w = (decode(arrays[name], p.weights) if arrays else nothing for name in ("x", "w"))
    sums = np.empty((p.m, p.n), np.float32) if arrays else nothing
    marks = [chip.marks(name) for name in ("x", "w", "y")]
    tile = (s.block_m, s.block_n, s.block_k, s.warp_m, s.warp_n, s.group_m)
    chip.on_all_cores(_grid, chip.count, *marks, x, w, sums, p.m, p.n, p.k, launch.grid[0], *tile)
    if arrays:
        arrays["y"][...] = encode(sums, p.output)
    return chip.counts(requested(launch, machine))


def requested(launch: Launch, machine: Machine) -> Requests:
    p, s = launch.problem, launch.schedule
    walk = Walk(p.m, p.n, p.k, s.block_m, s.block_n, s.block_n, s.block_k, s.group_m, s.ctas_per_sm * machine.sms)
    return requests(walk, SIZE, SIZE)


@njit(cache=True, nogil=True)
def _grid(
    core,
    cores,
    count,
    x_marks,
    w_marks,
    y_marks,
    x,
    w,
    y,
    m,
    n,
    k,
    tiles,
    block_m,
    block_n,
    block_k,
    warp_m,
    warp_n,
    group_m,
):
    sms = count.shape[0]
    fill_rows, store_rows = CHUNK * LANES // block_k, CHUNK * LANES // warp_n  # of a warp's request
    for sm in range(core, sms, cores):
        x_tile = np.empty((block_m, block_k), np.float32)
        w_tile = np.empty((block_k, block_n), np.float32)  # transposed on its way in, as the mma wants it
        total = np.empty((block_m, block_n), np.float32)
        for cta in range(sm, tiles, sms):
            row, column = tile_at(cta, m, n, block_m, block_n, group_m)
            total[:] = 0
            for at in range(0, k, block_k):
                load_patch(count[sm], x_marks, SIZE, x, m, k, row, at, x_tile, fill_rows)
                load_patch(count[sm], w_marks, SIZE, w, n, k, column, at, w_tile.T, fill_rows)
                mma(count[sm], total, x_tile, w_tile, m - row, n - column, k - at, x.size > 0)
            for r in range(0, block_m, warp_m):
                for c in range(0, block_n, warp_n):
                    part = total[r : r + warp_m, c : c + warp_n]
                    store_patch(count[sm], y_marks, SIZE, y, m, n, row + r, column + c, part, store_rows)
