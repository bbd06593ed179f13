"""The mainloop of the wgmma GEMMs, fed by TMA: tiles and rings, tensor maps, launches, counts, the simulation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.kernel import require_choice
from lab.kernels.common import clusters, linear
from lab.kernels.common.raster import Walk, requests, tile_at, tiles_of
from lab.kernels.gemm import wgmma_epilogue
from lab.problems import Linear
from sim.cache.walk import Requests
from sim.counts import SECTOR, Counts, box_sectors, sectors
from sim.errors import ScheduleError
from sim.formats import FORMATS
from sim.jit import njit
from sim.launch import Argument, Array, Launch, Role, TensorMap
from sim.machine import Machine
from sim.tiles import ELEMENT, SimulatedChip, load_tile, mma, store_tile

SCALES = ("scaled", "row_scales", "x_row_scales", "block_scales")
FACTS = ("weights", "activations", "output", "residual", "swiglu", *SCALES)
STEP_BYTES = 128  # bytes along k of a step: one swizzled row
MMA_M = 64  # rows of a wgmma
SWIZZLE = 128  # bytes
ALIGNMENT = 1024  # bytes, of a tile with the 128-byte swizzle
MBARRIER = 8  # bytes
ACCUMULATORS = 192  # of a consumer's 232 registers
WIDTHS = tuple(range(32, 257, 16))  # columns of a tile


@dataclass(frozen=True)
class Tiling:
    """The tile of a CTA and its ring: what the schedules of the wgmma GEMMs have in common."""

    block_m: int  # rows of y in a tile
    block_n: int  # rows of w in a tile
    stages: int  # k-steps of 128 bytes that the ring holds

    def __post_init__(self) -> None:
        require_choice(self, "block_m", (64, 128, 192, 256))
        require_choice(self, "block_n", WIDTHS)
        if self.stages < 2:
            raise ScheduleError(f"a ring has 2 stages or more; stages = {self.stages}")

    @property
    def step_bytes(self) -> int:
        return STEP_BYTES

    @property
    def stage_bytes(self) -> int:
        """One stage of the ring: a k-step of a tile's rows of x and of w."""
        return (self.block_m + self.block_n) * STEP_BYTES

    @property
    def ring_bytes(self) -> int:
        """The ring, its full and empty barriers padded to the alignment of a tile, and room to align the whole."""
        barriers = tiles_of(2 * MBARRIER * self.stages, ALIGNMENT) * ALIGNMENT
        return self.stages * self.stage_bytes + barriers + ALIGNMENT


def require_accumulators(accumulators: int) -> None:
    """Raise ScheduleError where a consumer's thread would hold too many accumulators."""
    if accumulators > ACCUMULATORS:
        raise ScheduleError(f"a tile of {accumulators} accumulators a thread; a consumer has room for {ACCUMULATORS}")


def accumulator_room(problem: Linear) -> int:
    """How many accumulators a thread has registers for: the operands of an epilogue take some."""
    needs = problem.row_scales + (problem.epilogue != "none") + (problem.output == "fp8")
    return (ACCUMULATORS, 128, 128, 96)[needs]


def is_whole(problem: Linear, block_n: int) -> bool:
    """Whether a tile of y is stored in whole rows of 64 bytes; half of a swiglu tile may not be."""
    return columns_of(problem, block_n) * FORMATS[problem.output].storage.itemsize % 64 == 0


def require_whole(problem: Linear, block_n: int) -> None:
    """Raise ScheduleError where a tile of y is not stored in whole rows of 64 bytes."""
    if not is_whole(problem, block_n):
        columns = columns_of(problem, block_n)
        raise ScheduleError(
            f"y is stored in rows of 64 bytes; {columns} columns in {problem.output} are not whole rows"
        )


def step_of(problem: Linear) -> int:
    """Elements along k of a step."""
    return STEP_BYTES // FORMATS[problem.activations].storage.itemsize


def columns_of(problem: Linear, block_n: int) -> int:
    """Columns of y in a tile of `block_n` rows of w: half of them where one half is gate and the other up."""
    return block_n // 2 if problem.swiglu else block_n


def tile_count(problem: Linear, block_m: int, block_n: int) -> int:
    return tiles_of(problem.m, block_m) * tiles_of(problem.columns, columns_of(problem, block_n))


def box_columns(problem: Linear, block_n: int) -> int:
    """Columns of a box of y: rows of 128, 64 or 32 bytes, the most of which a tile's are whole numbers."""
    size = FORMATS[problem.output].storage.itemsize
    row = columns_of(problem, block_n) * size
    return next(width for width in (128, 64, 32) if row % width == 0) // size


def arguments(problem: Linear, block_n: int, x_box: int, w_box: int) -> tuple[Argument, ...]:
    """The parameters of the wgmma GEMMs: boxes of x and w have x_box and w_box rows, those of y have 64."""
    p = problem
    step, columns = step_of(p), box_columns(p, block_n)
    row_bytes = columns * FORMATS[p.output].storage.itemsize
    return (
        TensorMap("x_map", "x", (p.m, p.k), (p.k, 1), (x_box, step), SWIZZLE),
        TensorMap("w_map", "w", (p.n, p.k), (p.k, 1), (w_box, step), SWIZZLE),
        TensorMap("y_map", "y", (p.m, p.columns), (p.columns, 1), (MMA_M, columns), row_bytes),
        *linear.arguments(p),
    )


def launch(kernel: str, problem: Linear, schedule: Any, ctas: int) -> tuple[Launch, ...]:
    """`ctas` CTAs of a kernel without clusters or epilogue operands: each loads whole tiles of x and w."""
    s = schedule
    return (
        Launch(
            kernel=kernel,
            entry=kernel,
            problem=problem,
            schedule=s,
            grid=(ctas, 1, 1),
            block=(s.threads, 1, 1),
            arguments=arguments(problem, s.block_n, s.block_m, s.block_n),
            shared_bytes=s.shared_bytes,
        ),
    )


def theory(problem: Linear, schedule: Any) -> Counts:
    """Counts of a launch in which every tile of y is one CTA's."""
    s = schedule
    return tiled_theory(problem, s.block_m, s.block_n, tiles_of(problem.m, s.block_m))


def tiled_theory(problem: Linear, block_m: int, block_n: int, tiles_m: int) -> Counts:
    """Each column of tiles loads x, each of the `tiles_m` rows of tiles loads w; y is stored in boxes.

    Where a tile's rows of w are half gate, half up, the last tile's gate rows reach into up's.
    """
    p = problem
    size, out = FORMATS[p.activations].storage.itemsize, FORMATS[p.output].storage.itemsize
    tile, step = columns_of(p, block_n), step_of(p)
    tiles_n, steps = tiles_of(p.columns, tile), tiles_of(p.k, step)

    def loaded(rows: int) -> int:
        return box_sectors(rows, size * p.k, STEP_BYTES)

    w = loaded(p.n)
    if p.swiglu:
        beyond = min(tiles_n * tile, p.n) - p.columns
        w += loaded(p.columns + beyond) - loaded(p.columns)
    y = box_sectors(p.m, out * p.columns, out * box_columns(p, block_n))
    return Counts(
        flops=p.flops,
        mma_flops=2 * tiles_m * block_m * tiles_n * block_n * steps * step,
        exp_count=0,
        global_load_sectors=0,
        global_store_sectors=0,
        tma_load_bytes=tiles_m * tiles_n * steps * (block_m + block_n) * STEP_BYTES,
        l2_to_sm_bytes=SECTOR * (tiles_n * loaded(p.m) + tiles_m * w),
        sm_to_l2_bytes=SECTOR * y,
        hbm_read_bytes=SECTOR
        * sum(
            sectors(0, a.nbytes)
            for a in (*linear.arguments(p), *linear.epilogue_arguments(p))
            if isinstance(a, Array) and a.role is Role.IN
        ),
        hbm_write_bytes=SECTOR * sectors(0, p.write_bytes),
    )


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    """Any of the wgmma GEMMs: each CTA or cluster walks its tiles, for each the k-steps, then the epilogue."""
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    x, w, y = (arrays[a.name] if arrays else np.zeros((0, 0), a.storage) for a in launch.arrays[:3])
    columns = [a.shape[1] for a in launch.arrays[:2]]  # of x and of w, where one is not as wide as k steps
    marks = [chip.marks(a.name) for a in launch.arrays[:3]]
    cluster = launch.cluster[0]
    workers = min(launch.ctas // cluster, clusters.at_once(cluster, 1, machine))
    epilogue = wgmma_epilogue.operands(p, chip, arrays, getattr(s, "part_columns", 0))
    wgmma_epilogue.count_tensor_scales(p, chip, workers * cluster)
    chip.on_all_cores(
        _grid, chip.count, *marks, x, w, y, p.m, p.n, p.k, *columns, workers, s.block_m, columns_of(p, s.block_n),
        cluster, s.group_m, step_of(p), box_columns(p, s.block_n), epilogue, ELEMENT[p.activations], ELEMENT[p.output],
    )  # fmt: skip
    return chip.counts(requested(launch, machine))


def requested(launch: Launch, machine: Machine) -> Requests:
    """What a launch asks of L2, tile after tile in the order in which its CTAs or clusters take them."""
    p, s, cluster = launch.problem, launch.schedule, launch.cluster[0]
    workers = min(launch.ctas // cluster, clusters.at_once(cluster, getattr(s, "ctas_per_sm", 1), machine))
    columns = columns_of(p, s.block_n)
    size, out = FORMATS[p.activations].storage.itemsize, FORMATS[p.output].storage.itemsize
    walk = Walk(p.m, p.columns, p.k, cluster * s.block_m, columns, s.block_n, step_of(p), s.group_m, workers)
    return requests(walk, size, out)


@njit(cache=True, nogil=True)
def _grid(
    core, cores,
    count, x_marks, w_marks, y_marks, x, w, y, m, n, k, x_columns, w_columns, workers, block_m, columns, cluster,
    group_m, step, box, epilogue, element, output,
):  # fmt: skip
    tall = cluster * block_m
    halves = 2 if epilogue.swiglu else 1
    width = n // halves  # columns of y
    tiles = -(-m // tall) * -(-width // columns)
    part = columns // cluster
    for cta in range(core, workers * cluster, cores):
        rank, counter = cta % cluster, count[cta]
        x_tile = np.empty((block_m, step), np.float32)
        w_tile = np.empty((step, halves * columns), np.float32)  # transposed on its way in, as the mma wants it
        total = np.empty((block_m, halves * columns), np.float32)
        for index in range(cta // cluster, tiles, workers):
            row, column = tile_at(index, m, width, tall, columns, group_m)
            row += rank * block_m
            total[:] = 0
            inside = halves * max(min(columns, width - column), 0)
            for at in range(0, k, step):
                load_tile(counter, x_marks, x, m, x_columns, row, at, x_tile, element)
                for half in range(halves):
                    for sender in range(cluster):  # each CTA of the cluster sends its part of w to all
                        first = sender * part
                        w_part = w_tile[:, half * columns + first : half * columns + first + part].T
                        load_tile(counter, w_marks, w, n, w_columns, half * width + column + first, at, w_part, element)
                if epilogue.block > 0:
                    wgmma_epilogue.scale_step(counter, epilogue, x_tile, w_tile, row, column, at // step, x.size > 0)
                mma(counter, total, x_tile, w_tile, m - row, inside, k - at, x.size > 0)
            for r in range(0, block_m, MMA_M):
                for c in range(0, columns, box):
                    out = wgmma_epilogue.finish(counter, epilogue, total, r, c, box, row, column, x.size > 0)
                    store_tile(counter, y_marks, y, m, width, row + r, column + c, out, output)
