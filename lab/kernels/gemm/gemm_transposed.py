"""Rows of w are those of mma and tokens its columns: tiles as high as there are tokens, which clusters load once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray

from lab.kernel import RANKING_CLOCK, Bills, Solves, require_choice, require_shared
from lab.kernels.common import clusters, linear
from lab.kernels.common.raster import require_group, tile_at, tiles_of
from lab.kernels.common.rings import deepest
from lab.kernels.gemm import wgmma_model
from lab.kernels.gemm.wgmma_mainloop import MMA_M, STEP_BYTES, SWIZZLE, Tiling
from lab.problems import Linear
from sim.counts import SECTOR, Counts, box_sectors, sectors
from sim.errors import ScheduleError
from sim.jit import njit
from sim.launch import Launch, TensorMap
from sim.machine import Machine
from sim.tiles import ELEMENT, SimulatedChip, load_tile, mma, store_tile

SOLVES = Solves(
    Linear,
    formats=("bf16", "fp16"),
    arch="sm_90a",
    row_bytes=16,
    why_multiple="TMA needs rows that are multiples of 16 bytes",
    after="gemm_cluster",
)

SIZE = 2  # bytes of an element
STEP = STEP_BYTES // SIZE  # elements of a k-step
EIGHT = 8  # tokens of a matrix of stmatrix
HEIGHTS = (*range(32, 193, 16), 200, *range(208, 257, 16))  # n of a wgmma; 200 as four times 194.25 are 777
CONSUMERS = {128: 2, 192: 3, 256: 2}  # warpgroups that multiply, by a tile's rows of w
ROOM = {2: 200, 3: 96}  # accumulators of a thread, by consumers


@dataclass(frozen=True)
class Schedule(Tiling):
    """The tile of a CTA, its rows of w dealt to the consumers, its ring, its boxes of y, its cluster."""

    y_rows: int  # tokens of a box of y
    cluster: int  # CTAs, side by side, that share the loads of x
    group_m: int  # rows of tiles walked together, so that x and w are shared in L2
    y_boxes: int = 2  # that a consumer holds; the more, the fewer rounds in which a tile is stored

    def __post_init__(self) -> None:
        require_choice(self, "block_m", HEIGHTS)
        require_choice(self, "block_n", tuple(CONSUMERS))
        require_choice(self, "cluster", (1, 2, 4))
        require_group(self.group_m)
        if self.stages < 2:
            raise ScheduleError(f"a ring has 2 stages or more; stages = {self.stages}")
        if self.y_rows < EIGHT or self.y_rows % EIGHT or self.block_m % self.y_rows:
            raise ScheduleError(
                f"boxes of y are whole matrices of {EIGHT} tokens and make up a tile; "
                f"{self.block_m} tokens are not boxes of {self.y_rows}"
            )
        if not 1 <= self.y_boxes <= self.boxes:
            raise ScheduleError(
                f"a consumer's tile is {self.boxes} boxes of y, of which it holds one at least and all "
                f"at most; y_boxes = {self.y_boxes}"
            )
        if self.accumulators > ROOM[self.consumers]:
            raise ScheduleError(
                f"{self.block_m} x {self.block_n} tiles are {self.accumulators} accumulators a thread; "
                f"each of {self.consumers} consumers has room for {ROOM[self.consumers]}"
            )

    @property
    def consumers(self) -> int:
        """Warpgroups that multiply, each as many rows of w."""
        return CONSUMERS[self.block_n]

    @property
    def accumulators(self) -> int:
        """Of a consumer's thread."""
        return self.block_n // self.consumers * self.block_m // 128

    @property
    def threads(self) -> int:
        return (1 + self.consumers) * 128

    @property
    def boxes(self) -> int:
        """Of y in a consumer's part of a tile."""
        return self.block_n // self.consumers // MMA_M * self.block_m // self.y_rows

    @property
    def box_bytes(self) -> int:
        """One box of y of each consumer."""
        return self.consumers * self.y_rows * MMA_M * SIZE

    @property
    def shared_bytes(self) -> int:
        return self.ring_bytes + self.y_boxes * self.box_bytes

    def fits(self, problem: Linear, machine: Machine) -> None:
        require_shared(self.shared_bytes, f"{self.stages} stages and {self.y_boxes} boxes", machine)


LONGEST = 8  # stages: more bring nothing
BOX_ROWS = (64, 32)  # of y, at most: fewer where that makes room for one more stage
TRIED = 12  # schedules that are worth trying


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Of all tiles those of least predicted time, each with the deepest ring that fits."""
    found: list[Schedule] = []
    heights = [height for below, height in zip((0, *HEIGHTS), HEIGHTS, strict=False) if below < problem.m]
    for (block_n, consumers), height, cluster in product(CONSUMERS.items(), heights, (1, 2, 4)):
        if block_n // consumers * height // 128 > ROOM[consumers]:
            continue
        best = wgmma_model.best_group(machine.sms // cluster, height, cluster * block_n)
        group_m = min(tiles_of(problem.m, height), best)
        rings: list[Schedule] = []
        for most in BOX_ROWS:
            y_rows = max(rows for rows in range(EIGHT, most + 1, EIGHT) if height % rows == 0)
            ring = partial(_ring, height, block_n, y_rows, cluster, group_m)
            rings += deepest(ring, LONGEST, problem, machine)
        found += [_filled(max(rings, key=lambda ring: ring.stages), machine)] if rings else []
    yield from sorted(found, key=lambda s: bills(problem, s, machine, RANKING_CLOCK).us)[:TRIED]


def _ring(block_m: int, block_n: int, y_rows: int, cluster: int, group_m: int, stages: int) -> Schedule:
    return Schedule(block_m, block_n, stages, y_rows, cluster, group_m, y_boxes=1)


def _filled(schedule: Schedule, machine: Machine) -> Schedule:
    """With as many boxes of y as the ring leaves room for: all, or an even number, which takes fewer registers."""
    room = (machine.shared_bytes_per_block - schedule.ring_bytes) // schedule.box_bytes
    return replace(schedule, y_boxes=schedule.boxes if room >= schedule.boxes else max(1, room - room % 2))


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    """As many clusters as run at once, or as there are tiles of theirs."""
    p, s = problem, schedule
    arguments = (
        TensorMap("x_map", "x", (p.m, p.k), (p.k, 1), (s.block_m, STEP), SWIZZLE),
        TensorMap("w_map", "w", (p.n, p.k), (p.k, 1), (s.block_n, STEP), SWIZZLE),
        TensorMap("y_map", "y", (p.m, p.n), (p.n, 1), (s.y_rows, MMA_M), SWIZZLE),
        *linear.arguments(p),
    )
    tiles = tiles_of(p.m, s.block_m) * tiles_of(p.n, s.cluster * s.block_n)
    ctas = s.cluster * min(tiles, clusters.resident(s.cluster, 1, machine))
    return (
        Launch(
            kernel="gemm_transposed",
            entry="gemm_transposed",
            problem=p,
            schedule=s,
            grid=(ctas, 1, 1),
            block=(s.threads, 1, 1),
            arguments=arguments,
            cluster=(s.cluster, 1, 1),
            shared_bytes=s.shared_bytes,
        ),
    )


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """Each column of tiles loads x, each row of tiles w; a cluster's last columns may lie outside y, and load x too."""
    p, s = problem, schedule
    tiles_m, steps = tiles_of(p.m, s.block_m), tiles_of(p.k, STEP)
    tiles_n = s.cluster * tiles_of(p.n, s.cluster * s.block_n)
    x, w = (box_sectors(rows, SIZE * p.k, STEP_BYTES) for rows in (p.m, p.n))
    return Counts(
        flops=p.flops,
        mma_flops=2 * tiles_m * s.block_m * tiles_n * s.block_n * steps * STEP,
        exp_count=0,
        global_load_sectors=0,
        global_store_sectors=0,
        tma_load_bytes=tiles_m * tiles_n * steps * s.stage_bytes,
        l2_to_sm_bytes=SECTOR * (tiles_n * x + tiles_m * w),
        sm_to_l2_bytes=SECTOR * box_sectors(p.m, SIZE * p.n, SIZE * MMA_M),
        hbm_read_bytes=SECTOR * (sectors(0, SIZE * p.m * p.k) + sectors(0, SIZE * p.n * p.k)),
        hbm_write_bytes=SECTOR * sectors(0, p.write_bytes),
    )


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """As gemm_cluster's, with w as its x, whose rows a cluster's CTAs have apart, and x as its w."""
    p, s, model = problem, schedule, wgmma_model.coefficients(machine, clock)
    turned = replace(p, m=p.n, n=p.m)
    between = model.tile_clocks + model.round_clocks * (s.block_m / MMA_M) * (s.block_n / MMA_M)
    return wgmma_model.tiled_bills(turned, s.block_n, s.block_m, s.cluster, between, machine, model)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    """Every CTA walks its tiles, for each the k-steps, then the boxes of y."""
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    x, w, y = (arrays[a.name] if arrays else np.zeros((0, 0), a.storage) for a in launch.arrays)
    marks = [chip.marks(a.name) for a in launch.arrays]
    chip.each_sm(
        _tiles, *marks, x, w, y, p.m, p.n, p.k, launch.ctas, s.block_m, s.block_n, s.cluster, s.y_rows, s.group_m,
        ELEMENT[p.activations], x.size > 0,
    )  # fmt: skip
    return chip.counts()


@njit(cache=True, nogil=True)
def _tiles(
    counter, sm, sms, x_marks, w_marks, y_marks, x, w, y, m, n, k, ctas, block_m, block_n, cluster, y_rows, group_m,
    element, numerics,
):  # fmt: skip
    """Those of one SM; what a CTA of the cluster sends to all is counted where it arrives."""
    x_tile = np.empty((block_m, STEP), np.float32)
    w_tile = np.empty((STEP, block_n), np.float32)  # transposed on its way in, as the mma wants it
    total = np.empty((block_m, block_n), np.float32)
    wide = cluster * block_n
    tiles = -(-m // block_m) * -(-n // wide) if sm < ctas else 0
    for index in range(sm // cluster, tiles, ctas // cluster):
        row, column = tile_at(index, m, n, block_m, wide, group_m)
        column += sm % cluster * block_n
        total[:] = 0
        for at in range(0, k, STEP):
            load_tile(counter, x_marks, x, m, k, row, at, x_tile, element)
            load_tile(counter, w_marks, w, n, k, column, at, w_tile.T, element)
            mma(counter, total, x_tile, w_tile, m - row, n - column, k - at, numerics)
        for c in range(0, block_n, MMA_M):
            for r in range(0, block_m, y_rows):
                part = total[r : r + y_rows, c : c + MMA_M]
                store_tile(counter, y_marks, y, m, n, row + r, column + c, part, element)
