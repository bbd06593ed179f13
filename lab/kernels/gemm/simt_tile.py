"""What the fp32 GEMMs on CUDA cores share: warp requests, launches, closed-form counts, the tile simulation."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.cards.fits import launch_us
from lab.kernel import Bills, require_choice, require_threads
from lab.kernels.common import linear
from lab.kernels.common.raster import tile_at, tiles_of
from lab.problems import Linear
from sim.bound import bills_us
from sim.counts import SECTOR, Counts, sectors
from sim.errors import ScheduleError
from sim.jit import njit
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import SimulatedChip, assign, fma_tile, load_lanes, load_vector, store_lanes

LANES = 32
BLOCK_K = 32  # elements of a row that a k-step takes where a lane takes one
FLOAT = 4  # bytes
VECTOR = 4  # floats in 16 bytes


class WarpRequest(NamedTuple):
    """What one request of a warp covers of a matrix: neighbouring rows, contiguous columns (whole sectors)."""

    rows: int
    columns: int


ROW = WarpRequest(1, LANES)  # one element a lane, all in one row


def vectors(block_k: int) -> WarpRequest:
    """16 bytes a lane, as many rows as fit."""
    return WarpRequest(LANES * VECTOR // block_k, block_k)


class RowByRow:
    """What the schedules of the lower rungs have in common: short k-steps, tiles in the order of y, no other limits."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """Of a CTA."""

    @property
    def block_k(self) -> int:
        return BLOCK_K

    @property
    def group_m(self) -> int:
        return 1

    def fits(self, problem: Linear, machine: Machine) -> None:
        require_threads(1, self.threads, machine)


def require_warps(schedule: Any) -> None:
    """Raise ScheduleError where the CTA is not one warp or more."""
    if schedule.threads % LANES or not schedule.threads:
        raise ScheduleError(f"the tile takes {schedule.threads} threads, which are no whole warps")


def require_rows(schedule: Any, request: WarpRequest) -> None:
    """Raise ScheduleError where the rows of a tile are not a multiple of those that all warps load at once."""
    together = schedule.threads // LANES * request.rows
    for name in ("block_m", "block_n"):
        if getattr(schedule, name) % together:
            raise ScheduleError(
                f"{schedule.threads} threads load {together} rows at once; {name} = {getattr(schedule, name)} is no "
                f"multiple of it"
            )


@dataclass(frozen=True)
class PatchSchedule(RowByRow):
    """The tile of y that a CTA computes, and the patch of it that a thread owns."""

    block_m: int  # rows of y
    block_n: int  # columns of y
    thread_m: int  # rows that a thread owns, spread_m apart
    thread_n: int  # columns that a thread owns, spread_n apart: neighbouring lanes side by side

    def __post_init__(self) -> None:
        require_choice(self, "block_m", (32, 64, 128))
        require_choice(self, "block_n", (64, 128))
        require_choice(self, "thread_m", (2, 4, 8))
        require_choice(self, "thread_n", (2, 4, 8))
        require_warps(self)
        require_rows(self, ROW)

    @property
    def spread_m(self) -> int:
        return self.block_m // self.thread_m

    @property
    def spread_n(self) -> int:
        return self.block_n // self.thread_n

    @property
    def threads(self) -> int:
        return self.spread_m * self.spread_n

    def store(self) -> WarpRequest:
        """What a warp writes of y at once."""
        columns = min(LANES, self.spread_n)
        return WarpRequest(LANES // columns, columns)


PATCHES = (  # block_m, block_n, thread_m, thread_n
    (128, 128, 8, 8),
    (128, 64, 8, 8),
    (64, 128, 8, 8),
    (128, 64, 8, 4),
    (64, 64, 4, 4),
    (32, 64, 4, 4),
)


def launch(kernel: str, problem: Linear, schedule: Any, shared_bytes: int = 0) -> tuple[Launch, ...]:
    """One CTA for each tile of y."""
    tiles = tiles_of(problem.m, schedule.block_m) * tiles_of(problem.n, schedule.block_n)
    return (
        Launch(
            kernel=kernel,
            entry=kernel,
            problem=problem,
            schedule=schedule,
            grid=(tiles, 1, 1),
            block=(schedule.threads, 1, 1),
            arguments=linear.arguments(problem),
            shared_bytes=shared_bytes,
        ),
    )


def patch_sectors(rows: int, columns: int, request: WarpRequest) -> int:
    """Sectors of all requests when a [rows, columns] fp32 matrix is accessed once, patch by patch."""
    full, rest = divmod(columns, request.columns)
    return full * _strip(rows, columns, request.rows, request.columns) + _strip(rows, columns, request.rows, rest)


def _strip(rows: int, columns: int, together: int, width: int) -> int:
    """Sectors of the first `width` columns, in requests of `together` rows; rows that meet in a sector share it.

    How a request falls into sectors depends on where it starts in one, so it repeats after eight requests or fewer.
    """
    if width == 0:
        return 0

    def one(first: int, count: int) -> int:
        total, previous = 0, -1
        for row in range(first, first + count):
            start = FLOAT * row * columns
            begin, end = start // SECTOR, (start + FLOAT * width - 1) // SECTOR
            total += end - max(begin - 1, previous)
            previous = end
        return total

    requests, rest = divmod(rows, together)
    period = next(p for p in (1, 2, 4, 8) if p * together * FLOAT * columns % SECTOR == 0)
    counts = [one(r * together, together) for r in range(min(period, requests))]
    whole = requests // period * sum(counts) + sum(counts[: requests % period]) if requests >= period else sum(counts)
    return whole + one(requests * together, rest)


def theory(problem: Linear, x: int, w: int, y: int) -> Counts:
    """The counts of a kernel that requests so many sectors of x, w and y."""
    p = problem
    return Counts(
        flops=p.flops,
        mma_flops=0,
        exp_count=0,
        global_load_sectors=x + w,
        global_store_sectors=y,
        tma_load_bytes=0,
        l2_to_sm_bytes=SECTOR * (x + w),
        sm_to_l2_bytes=SECTOR * y,
        hbm_read_bytes=SECTOR * (sectors(0, FLOAT * p.m * p.k) + sectors(0, FLOAT * p.n * p.k)),
        hbm_write_bytes=SECTOR * sectors(0, FLOAT * p.m * p.n),
    )


def tiled_theory(problem: Linear, schedule: Any, load: WarpRequest, store: WarpRequest) -> Counts:
    """Each column of tiles loads x, each row of tiles loads w: through shared memory, so nothing leans on L1."""
    p = problem
    x = tiles_of(p.n, schedule.block_n) * patch_sectors(p.m, p.k, load)
    w = tiles_of(p.m, schedule.block_m) * patch_sectors(p.n, p.k, load)
    return theory(p, x, w, patch_sectors(p.m, p.n, store))


def bills(
    problem: Linear,
    schedule: Any,
    counts: Counts,
    machine: Machine,
    clock: str,
    thread_m: int,
    thread_n: int,
    width: int,
    other: float = 0.0,
) -> Bills:
    """An empty launch; what the counts say, or what a patch of outputs a thread makes the busiest SM issue and read.

    For thread_m x thread_n multiply-adds a thread reads thread_m + thread_n words, `width` in one instruction, and
    spends `other` issue slots. In the time of a multiply-add an SM issues one instruction for it; shared memory and L1
    take four such times for each wavefront (128 bytes a clock beside 128 multiply-adds: CUDA C++ Programming Guide,
    compute capability 9.0): one for a word a lane, two for 16 bytes where the lanes of half a warp share addresses.
    """
    tiles = tiles_of(problem.m, schedule.block_m) * tiles_of(problem.n, schedule.block_n)
    words = (thread_m + thread_n) / (thread_m * thread_n)  # for each multiply-add
    wavefronts = words * (1 if width == 1 else 2 / width)
    flops = 2 * schedule.block_m * schedule.block_n * problem.k * tiles_of(tiles, machine.sms) * machine.sms
    paid = {
        **bills_us(counts, "fp32", machine, tiles),
        "instructions": (1 + words / width + other / (thread_m * thread_n)) * flops / machine.peak("fp32") * 1e6,
        "shared memory": 4 * wavefronts * flops / machine.peak("fp32") * 1e6,
    }
    launch = launch_us(machine, clock)
    return Bills(launch + max(paid.values()), {"launch": launch, **paid})


def simulate_tiles(
    launch: Launch,
    arrays: Mapping[str, NDArray],
    machine: Machine,
    load: WarpRequest,
    store: WarpRequest,
) -> Counts:
    """The tiles of x and w through shared memory, k-step by k-step; what a thread owns shows in `store` alone."""
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    nothing = np.zeros((0, 0), np.float32)
    operands = [arrays[name] if arrays else nothing for name in ("x", "w", "y")]
    marks = [chip.marks(name) for name in ("x", "w", "y")]
    tile = (s.block_m, s.block_n, s.block_k, s.group_m)
    chip.on_all_cores(_grid, chip.count, *marks, *operands, p.m, p.n, p.k, launch.grid[0], *tile, load, store)
    return chip.counts()


@njit(cache=True)
def load_patches(count, marks, source, rows, columns, row, column, tile, request):
    """A tile at (row, column) of a [rows, columns] matrix, patch by patch, zeros beyond the matrix."""
    height, width = min(tile.shape[0], rows - row), min(tile.shape[1], columns - column)
    for r in range(0, height, request.rows):
        for c in range(0, width, request.columns):
            start = FLOAT * ((row + r) * columns + column + c)
            wide, tall = FLOAT * min(request.columns, width - c), min(request.rows, height - r)
            if tall == 1:
                load_vector(count, marks, start, wide)
            else:
                load_lanes(count, marks, start, FLOAT * columns, wide, tall, SECTOR, 1)
    if source.size > 0:
        if height < tile.shape[0] or width < tile.shape[1]:
            tile[:] = 0
        assign(tile[:height, :width], source[row : row + height, column : column + width])


@njit(cache=True)
def store_patches(count, marks, target, rows, columns, row, column, tile, request):
    """A tile of y at (row, column), patch by patch, clipped to the matrix."""
    height, width = min(tile.shape[0], rows - row), min(tile.shape[1], columns - column)
    for r in range(0, height, request.rows):
        for c in range(0, width, request.columns):
            start = FLOAT * ((row + r) * columns + column + c)
            wide, tall = FLOAT * min(request.columns, width - c), min(request.rows, height - r)
            store_lanes(count, marks, start, FLOAT * columns, wide, tall, SECTOR, 1)
    if target.size > 0:
        assign(target[row : row + height, column : column + width], tile[:height, :width])


@njit(cache=True, nogil=True)
def _grid(
    core, cores,
    count, x_marks, w_marks, y_marks, x, w, y, m, n, k, tiles, block_m, block_n, block_k, group_m, load, store
):  # fmt: skip
    sms = count.shape[0]
    for sm in range(core, sms, cores):
        x_tile = np.zeros((block_m, block_k), np.float32)
        w_tile = np.zeros((block_k, block_n), np.float32)  # transposed on its way in, as the multiplication wants it
        sums = np.zeros((block_m, block_n), np.float32)
        for cta in range(sm, tiles, sms):
            row, column = tile_at(cta, m, n, block_m, block_n, group_m)
            sums[:] = 0
            for k0 in range(0, k, block_k):
                load_patches(count[sm], x_marks, x, m, k, row, k0, x_tile, load)
                load_patches(count[sm], w_marks, w, n, k, column, k0, w_tile.T, load)
                fma_tile(count[sm], sums, x_tile, w_tile, m - row, n - column, k - k0, x.size > 0)
            store_patches(count[sm], y_marks, y, m, n, row, column, sums, store)
