"""TMA brings whole lines of w, from where its rows go to registers; tiles as high as there are tokens."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import gcd

import numpy as np
from numpy.typing import NDArray

from lab.kernel import RANKING_CLOCK, Bills, Solves, require_choice, require_shared
from lab.kernels.common import clusters, linear
from lab.kernels.common.raster import require_group, tile_at, tiles_of
from lab.kernels.common.rings import deepest
from lab.kernels.gemm import gemm_realigned, wgmma_model
from lab.kernels.gemm.warp_roles import CONSUMERS
from lab.kernels.gemm.wgmma_mainloop import (
    ACCUMULATORS,
    ALIGNMENT,
    MBARRIER,
    MMA_M,
    STEP_BYTES,
    SWIZZLE,
    require_accumulators,
)
from lab.problems import Linear
from sim.counts import SECTOR, Counts, box_sectors, sectors
from sim.errors import ScheduleError
from sim.jit import njit
from sim.launch import Array, Launch, Role, Scalar, TensorMap
from sim.machine import Machine
from sim.tiles import ELEMENT, SimulatedChip, load_tile, mma, store_tile

SOLVES = Solves(
    Linear,
    formats=("bf16", "fp16"),
    arch="sm_90a",
    row_bytes=16,
    why_multiple="TMA needs rows that are multiples of 16 bytes",
    after="gemm_realigned",
)

SIZE = 2  # bytes of an element
STEP = STEP_BYTES // SIZE  # elements of a line, of a k-step
EIGHT = 8  # rows of w that are whole lines; elements of 16 bytes
HEIGHTS = (16, 32, 64, 96, 112, 128, 144, 160, 192, 208, 256)  # n of a wgmma whose operand a is in registers
BUFFERS = 2  # of a consumer's, for boxes of y


@dataclass(frozen=True)
class Schedule(gemm_realigned.Copies):
    """The tile of a CTA, half of its rows of w in each consumer, its ring, its boxes of y."""

    block_m: int  # tokens in a tile
    block_n: int  # rows of w in a tile
    stages: int  # k-steps of 128 bytes that the ring holds
    y_rows: int  # tokens of a box of y
    group_m: int  # rows of tiles walked together, so that x and w are shared in L2
    cluster: int = 1  # CTAs, side by side, that share the loads of x

    def __post_init__(self) -> None:
        require_choice(self, "block_m", HEIGHTS)
        require_choice(self, "block_n", (128, 256))
        require_choice(self, "cluster", (1, 2))
        require_group(self.group_m)
        if self.stages < 3:
            raise ScheduleError(f"a k-step lies in two stages, so a ring has 3 or more; stages = {self.stages}")
        if self.block_m // self.cluster % EIGHT:
            raise ScheduleError(
                f"a CTA loads whole matrices of {EIGHT} tokens; {self.block_m} of a cluster of {self.cluster} are none"
            )
        if self.y_rows < EIGHT or self.y_rows % EIGHT or self.block_m % self.y_rows:
            raise ScheduleError(
                f"boxes of y are whole matrices of {EIGHT} tokens and make up a tile; "
                f"{self.block_m} tokens are not boxes of {self.y_rows}"
            )
        require_accumulators(self.accumulators)

    @property
    def accumulators(self) -> int:
        """Of a consumer's thread."""
        return self.block_n // CONSUMERS * self.block_m // 128

    @property
    def threads(self) -> int:
        return (1 + CONSUMERS) * 128

    @property
    def step_bytes(self) -> int:
        return STEP_BYTES

    @property
    def stage_bytes(self) -> int:
        """One stage of the ring: a k-step of x, a line of each row of w."""
        return (self.block_m + self.block_n) * STEP_BYTES

    @property
    def buffers(self) -> int:
        """Boxes of y that a consumer holds."""
        return min(BUFFERS, self.block_n // CONSUMERS // MMA_M * self.block_m // self.y_rows)

    @property
    def shared_bytes(self) -> int:
        barriers = tiles_of(2 * MBARRIER * self.stages, ALIGNMENT) * ALIGNMENT
        boxes = CONSUMERS * self.buffers * self.y_rows * MMA_M * SIZE
        return self.stages * self.stage_bytes + boxes + barriers + ALIGNMENT

    def fits(self, problem: Linear, machine: Machine) -> None:
        require_shared(self.shared_bytes, f"{self.stages} stages and {self.buffers} boxes", machine)


LONGEST = 8  # stages: more bring nothing
BOX_ROWS = (64, 32)  # of y, at most: fewer where that makes room for one more stage
TRIED = 12  # schedules that are worth trying


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Of all tiles those of least predicted time, each with the deepest ring that fits."""
    found: list[Schedule] = []
    heights = [height for below, height in zip((0, *HEIGHTS), HEIGHTS, strict=False) if below < problem.m]
    for block_m, block_n, cluster in product(heights, (128, 256), (1, 2)):
        if block_n // CONSUMERS * block_m // 128 <= ACCUMULATORS:
            best = wgmma_model.best_group(machine.sms // cluster, block_m, cluster * block_n)
            group_m = min(tiles_of(problem.m, block_m), best)
            rings = [
                ring
                for most in BOX_ROWS
                for ring in deepest(
                    partial(_ring, block_m, block_n, _y_rows(block_m, most), cluster, group_m),
                    LONGEST,
                    problem,
                    machine,
                )
            ]
            found += [max(rings, key=lambda ring: ring.stages)] if rings else []
    yield from sorted(found, key=lambda s: bills(problem, s, machine, RANKING_CLOCK).us)[:TRIED]


def _y_rows(block_m: int, most: int) -> int:
    """The tallest boxes that make up a tile."""
    return max(rows for rows in range(EIGHT, most + 1, EIGHT) if block_m % rows == 0)


def _ring(block_m: int, block_n: int, y_rows: int, cluster: int, group_m: int, stages: int) -> Schedule:
    return Schedule(block_m, block_n, max(3, stages), y_rows, group_m, cluster)


def copies(problem: Linear) -> bool:
    """Whether x is copied: its rows are no whole lines."""
    return problem.k % STEP > 0


def pitch_of(problem: Linear) -> int:
    """Elements from a row of x to the next one as it is multiplied."""
    return tiles_of(problem.k, STEP) * STEP


def first_line(row: int, k: int) -> int:
    """The line of eight rows of w in which one of them begins."""
    return row * k // STEP


def lines_of(k: int) -> int:
    """The most lines that a row of w lies in."""
    return max(tiles_of((row + 1) * k, STEP) - first_line(row, k) for row in range(EIGHT))


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    """The copy of x, where there is one, and as many CTAs as there are SMs, or tiles."""
    p, s, pitch = problem, schedule, pitch_of(problem)
    x, w, y, *extents = linear.arguments(p)
    lines = Array("x_lines", Role.WORKSPACE, (p.m, pitch), p.activations)
    of_x = lines if copies(p) else x
    arguments = (
        TensorMap("x_map", of_x.name, (p.m, pitch), (pitch, 1), (s.block_m // s.cluster, STEP), SWIZZLE),
        TensorMap("w_map", "w", (p.n // EIGHT, EIGHT * p.k), (EIGHT * p.k, 1), (s.block_n // EIGHT, STEP), SWIZZLE),
        TensorMap("y_map", "y", (p.m, p.n), (p.n, 1), (s.y_rows, MMA_M), SWIZZLE),
        *(of_x, w, y, *extents),
        Scalar("lines", lines_of(p.k)),
    )
    tiles = tiles_of(p.m, s.block_m) * tiles_of(p.n, s.cluster * s.block_n)
    ctas = s.cluster * min(tiles, clusters.resident(s.cluster, 1, machine))
    multiply = Launch(
        "gemm_shifted", "gemm_shifted", p, s, (ctas, 1, 1), (s.threads, 1, 1), arguments, (s.cluster, 1, 1),
        s.shared_bytes,
    )  # fmt: skip
    if not copies(p):
        return (multiply,)
    m, _, k = extents
    to_lines = (x, w, lines, Scalar("w_lines", 0, "int64"), m, Scalar("w_rows", 0), k, Scalar("pitch", pitch))
    return gemm_realigned.copy("gemm_realigned", p, s, p.m, p.k, to_lines, machine), multiply


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """Each column of tiles loads x, each row of tiles the lines of w, those that lie in two rows for both."""
    p, s, lines, pitch = problem, schedule, lines_of(problem.k), pitch_of(problem)
    tiles_m, steps = tiles_of(p.m, s.block_m), pitch // STEP
    tiles_n = s.cluster * tiles_of(p.n, s.cluster * s.block_n)  # the last may lie outside y
    of_eight = sum(min(lines, p.k // EIGHT - first_line(row, p.k)) for row in range(EIGHT))
    w = p.n // EIGHT * of_eight * sectors(0, STEP_BYTES)
    counts = Counts(
        flops=p.flops,
        mma_flops=2 * tiles_m * s.block_m * tiles_n * s.block_n * steps * STEP,
        exp_count=0,
        global_load_sectors=0,
        global_store_sectors=0,
        tma_load_bytes=tiles_m * tiles_n * lines * s.stage_bytes,
        l2_to_sm_bytes=SECTOR * (tiles_n * box_sectors(p.m, SIZE * pitch, STEP_BYTES) + tiles_m * w),
        sm_to_l2_bytes=SECTOR * box_sectors(p.m, SIZE * p.n, SIZE * MMA_M),
        hbm_read_bytes=SECTOR * (sectors(0, SIZE * p.m * pitch) + sectors(0, SIZE * p.n * p.k)),
        hbm_write_bytes=SECTOR * sectors(0, p.write_bytes),
    )
    return counts + gemm_realigned.copied_to_lines(p.m, p.k) if copies(p) else counts


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """As wgmma GEMMs whose rows are whole lines, with w as their x, and the copy of x behind a launch of its own.

    Where several of eight rows begin at the same place in a line, ldmatrix asks the same banks for them.
    """
    p, s, model = problem, schedule, wgmma_model.coefficients(machine, clock)
    turned = replace(p, m=p.n, n=p.m, k=pitch_of(p))  # rows of w are those of the operand a
    between = model.tile_clocks + model.round_clocks * (s.block_m / MMA_M) * (s.block_n / MMA_M)
    found = wgmma_model.tiled_bills(turned, s.block_n, s.block_m, s.cluster, between, machine, model)
    step = wgmma_model.step_clocks(turned, s.block_n, s.block_m, s.cluster, machine, model)
    operands = s.block_n // MMA_M * s.block_m + s.block_n * gcd(p.k // EIGHT, EIGHT)  # rows of 128 bytes
    waits = max(0.0, operands * STEP_BYTES / machine.shared_bytes_per_clock - max(step.values()))
    tiles = tiles_of(p.m, s.block_m) * tiles_of(p.n, s.cluster * s.block_n)
    waves = tiles_of(tiles, clusters.resident(s.cluster, 1, machine))
    more = {"bank conflicts": 1e6 * waves * pitch_of(p) // STEP * waits / machine.clock_hz}
    if copies(p):
        more["copies"] = gemm_realigned.copy_us(SIZE * p.m * p.k, machine, clock)
    return Bills(found.us + sum(more.values()), {**found.parts, **more}, (*found.apart, *more))


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    """Every CTA walks its tiles, for each the lines, then the boxes of y."""
    if launch.kernel == "gemm_realigned":
        return gemm_realigned.simulate_copy(launch, arrays, machine)
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    x, w, y = (arrays[a.name] if arrays else np.zeros((0, 0), a.storage) for a in launch.arrays[:3])
    marks = [chip.marks(a.name) for a in launch.arrays[:3]]
    first = np.array([first_line(row, p.k) for row in range(EIGHT)])
    chip.each_sm(
        _tiles, *marks, x, w, y, p.m, p.n, p.k, pitch_of(p), first, lines_of(p.k), launch.ctas, s.block_m, s.block_n,
        s.cluster, s.y_rows, s.group_m, ELEMENT[p.activations], x.size > 0,
    )  # fmt: skip
    return chip.counts()


@njit(cache=True, nogil=True)
def _tiles(
    counter, sm, sms, x_marks, w_marks, y_marks, x, w, y, m, n, k, pitch, first, lines, ctas, block_m, block_n, cluster,
    y_rows, group_m, element, numerics,
):  # fmt: skip
    """Those of one SM. What of w is counted, whole lines, and what is multiplied are other boxes of it."""
    uncounted, nothing = np.zeros_like(counter), np.empty((0, 0), w.dtype)
    x_tile = np.empty((block_m, STEP), np.float32)
    w_tile = np.empty((STEP, block_n), np.float32)  # transposed on its way in, as the mma wants it
    box = np.empty((block_n // EIGHT, STEP), np.float32)
    total = np.empty((block_m, block_n), np.float32)
    wide = cluster * block_n
    tiles = -(-m // block_m) * -(-n // wide) if sm < ctas else 0
    for index in range(sm // cluster, tiles, ctas // cluster):
        row, column = tile_at(index, m, n, block_m, wide, group_m)
        column += sm % cluster * block_n
        total[:] = 0
        for line in range(lines):
            at = line * STEP
            load_tile(counter, x_marks, x, m, pitch, row, at, x_tile, element)
            for of_eight in range(EIGHT):
                start = (first[of_eight] + line) * STEP
                load_tile(counter, w_marks, nothing, n // EIGHT, EIGHT * k, column // EIGHT, start, box, element)
            if at < k:
                if numerics:
                    load_tile(uncounted, w_marks, w, n, k, column, at, w_tile.T, element)
                mma(counter, total, x_tile, w_tile, m - row, n - column, k - at, numerics)
        for c in range(0, block_n, MMA_M):
            for r in range(0, block_m, y_rows):
                part = total[r : r + y_rows, c : c + MMA_M]
                store_tile(counter, y_marks, y, m, n, row + r, column + c, part, element)
