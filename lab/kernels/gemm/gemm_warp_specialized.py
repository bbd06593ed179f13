"""Warp roles and persistent CTAs: loads, multiplications and stores of neighbouring tiles run at the same time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Solves, require_choice, require_shared
from lab.kernels.gemm import _tiles
from lab.kernels.gemm._tiles import ALIGNMENT, BF16, BLOCK_K, MMA_M, tile_at, tiles_of
from lab.problems import Linear
from sim.counts import Counts
from sim.errors import ScheduleError
from sim.jit import njit, prange
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import ELEMENT, Chip, load_tile, mma, store_tile

FORMAT = ELEMENT["bf16"]

SOLVES = Solves(
    Linear,
    weights=("bf16",),
    arch="sm_90a",
    row_bytes=16,
    why_multiple="TMA needs rows that are multiples of 16 bytes",
    after="gemm_wgmma",
)

CONSUMERS = 2  # warpgroups that multiply; one more loads


@dataclass(frozen=True)
class Schedule:
    """The tile of a CTA, its ring, its way out, its cluster."""

    block_m: int  # rows of y in a tile, half of them in each consumer
    block_n: int  # columns of y in a tile
    stages: int  # k-steps of 64 that the ring holds
    y_boxes: int  # 64 x 64 boxes of y that each consumer stages for the stores
    cluster: int  # CTAs, one below the other, that share the loads of w
    group_m: int  # rows of clusters walked together, so that x and w are shared in L2

    def __post_init__(self) -> None:
        require_choice(self, "block_m", (128, 256))
        require_choice(self, "block_n", (64, 128, 192, 256))
        require_choice(self, "cluster", (1, 2))
        accumulators = self.block_m * self.block_n // (CONSUMERS * 128)
        if accumulators > 128:
            raise ScheduleError(
                f"a {self.block_m} x {self.block_n} tile needs {accumulators} accumulators a thread; "
                f"a consumer has room for 128"
            )
        if self.stages < 2:
            raise ScheduleError(f"a ring has 2 stages or more; stages = {self.stages}")
        require_choice(self, "y_boxes", tuple(n for n in range(1, self.boxes + 1) if self.boxes % n == 0))
        if not 1 <= self.group_m <= 1024:
            raise ScheduleError(f"group_m is from 1 to 1,024 rows of clusters; group_m = {self.group_m}")

    @property
    def block_k(self) -> int:
        return BLOCK_K

    @property
    def boxes(self) -> int:
        """64 x 64 boxes of y in each consumer's half of the tile."""
        return self.block_m // CONSUMERS // MMA_M * (self.block_n // BLOCK_K)

    @property
    def threads(self) -> int:
        return (1 + CONSUMERS) * 128

    @property
    def stage_bytes(self) -> int:
        return _tiles.stage_bytes(self.block_m, self.block_n)

    @property
    def shared_bytes(self) -> int:
        """The ring, the boxes of y, barriers padded to the alignment of a tile, and room to align the whole."""
        y = CONSUMERS * self.y_boxes * MMA_M * BLOCK_K * BF16
        return self.stages * self.stage_bytes + y + _tiles.barrier_bytes(self.stages) + ALIGNMENT

    def fits(self, problem: Linear, machine: Machine) -> None:
        require_shared(self.shared_bytes, f"{self.stages} stages and {self.y_boxes} boxes", machine)


SHAPES = (  # block_m, block_n, stages, boxes of y, cluster
    (128, 256, 4, 2, 2),
    (256, 128, 4, 2, 2),
    (128, 256, 4, 2, 1),
    (256, 128, 4, 2, 1),
    (128, 256, 3, 4, 2),
    (128, 192, 4, 3, 1),
    (128, 128, 6, 2, 1),
    (128, 64, 8, 1, 1),
)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Tile shapes by estimated time, each with the two rasters that fit a wave of tiles best.

    Clusters come last: on an H100 they were slower than single CTAs at every shape that was measured.
    """

    def clocks(shape: tuple[int, ...]) -> tuple[int, int]:
        block_m, block_n, _, _, cluster = shape
        return cluster, _tiles.estimated_clocks(problem, cluster * block_m, block_n, machine, sms=cluster)

    for block_m, block_n, stages, y_boxes, cluster in sorted(SHAPES, key=clocks):
        for rows in (2048, 1024):
            yield Schedule(block_m, block_n, stages, y_boxes, cluster, group_m=rows // (cluster * block_m))


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    s = schedule
    tiles = _tiles.tile_count(problem, s.cluster * s.block_m, s.block_n)
    return (
        Launch(
            kernel="gemm_warp_specialized",
            entry="gemm_warp_specialized",
            problem=problem,
            schedule=s,
            grid=(s.cluster * min(tiles, machine.sms // s.cluster), 1, 1),
            block=(s.threads, 1, 1),
            arguments=_tiles.arguments(problem, s.block_m, s.block_n // s.cluster),
            cluster=(s.cluster, 1, 1),
            shared_bytes=s.shared_bytes,
        ),
    )


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """A cluster's last tiles may lie outside y; they are loaded and multiplied all the same."""
    tiles_m = schedule.cluster * tiles_of(problem.m, schedule.cluster * schedule.block_m)
    return _tiles.theory(problem, schedule.block_m, schedule.block_n, tiles_m)


def simulate(launch: Launch, arrays: Mapping[str, NDArray] | None, machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = Chip(launch, machine)
    nothing = np.zeros((0, 0), np.uint16)
    x, w, y = (arrays[name] if arrays else nothing for name in ("x", "w", "y"))
    marks = [chip.marks(name) for name in ("x", "w", "y")]
    _grid(chip.count, *marks, x, w, y, p.m, p.n, p.k, launch.ctas, s.block_m, s.block_n, s.cluster, s.group_m)
    return chip.counts()


@njit(cache=True, parallel=True)
def _grid(count, x_marks, w_marks, y_marks, x, w, y, m, n, k, ctas, block_m, block_n, cluster, group_m):
    tall = cluster * block_m
    tiles = -(-m // tall) * -(-n // block_n)
    part = block_n // cluster
    for cta in prange(ctas):
        rank = cta % cluster
        x_tile = np.empty((block_m, BLOCK_K), np.float32)
        w_tile = np.empty((BLOCK_K, block_n), np.float32)  # transposed on its way in, as the mma wants it
        total = np.empty((block_m, block_n), np.float32)
        for index in range(cta // cluster, tiles, ctas // cluster):
            row, column = tile_at(index, m, n, tall, block_n, group_m)
            row += rank * block_m
            total[:] = 0
            for at in range(0, k, BLOCK_K):
                load_tile(count[cta], x_marks, x, m, k, row, at, x_tile, FORMAT)
                for sender in range(cluster):  # each CTA of the cluster sends its part of w to all
                    w_part = w_tile[:, sender * part : (sender + 1) * part].T
                    load_tile(count[cta], w_marks, w, n, k, column + sender * part, at, w_part, FORMAT)
                mma(count[cta], total, x_tile, w_tile, m - row, n - column, k - at, x.size > 0)
            for r in range(0, block_m, MMA_M):
                for c in range(0, block_n, BLOCK_K):
                    box = total[r : r + MMA_M, c : c + BLOCK_K]
                    store_tile(count[cta], y_marks, y, m, n, row + r, column + c, box, FORMAT)
