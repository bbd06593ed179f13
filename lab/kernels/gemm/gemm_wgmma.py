"""TMA fills a ring of swizzled tiles in shared memory, wgmma reads them: prefill at the rate of the tensor cores."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Solves, require_choice, require_shared
from lab.kernels.gemm import _tiles
from lab.kernels.gemm._tiles import ALIGNMENT, BLOCK_K, MMA_M, tile_at
from lab.problems import Linear
from sim.counts import Counts
from sim.errors import ScheduleError
from sim.jit import njit, prange
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import Chip, load_tile, mma, store_tile

SOLVES = Solves(
    Linear,
    weights=("bf16",),
    arch="sm_90a",
    row_bytes=16,
    why_multiple="TMA needs rows that are multiples of 16 bytes",
    after="gemm_mma_sync",
)

OTHER_REGISTERS = 40  # a thread's registers beside its accumulators, at most


@dataclass(frozen=True)
class Schedule:
    """The tile of a CTA and its ring."""

    block_m: int  # rows of y in a tile, 64 for each warpgroup
    block_n: int  # columns of y in a tile
    stages: int  # k-steps of 64 that the ring holds
    ctas_per_sm: int  # CTAs that an SM holds at once; one computes while the other stores
    group_m: int  # tile rows walked together, so that x and w are shared in L2

    def __post_init__(self) -> None:
        require_choice(self, "block_m", (64, 128, 192, 256))
        require_choice(self, "block_n", (64, 128, 192, 256))
        require_choice(self, "ctas_per_sm", (1, 2))
        if self.stages < 2:
            raise ScheduleError(f"a ring has 2 stages or more; stages = {self.stages}")
        if not 1 <= self.group_m <= 1024:
            raise ScheduleError(f"group_m is from 1 to 1,024 tile rows; group_m = {self.group_m}")

    @property
    def block_k(self) -> int:
        return BLOCK_K

    @property
    def threads(self) -> int:
        return 2 * self.block_m

    @property
    def stage_bytes(self) -> int:
        return _tiles.stage_bytes(self.block_m, self.block_n)

    @property
    def shared_bytes(self) -> int:
        """The ring, its barriers padded to the alignment of a tile, and room to align the whole."""
        return self.stages * self.stage_bytes + _tiles.barrier_bytes(self.stages) + ALIGNMENT

    def fits(self, problem: Linear, machine: Machine) -> None:
        require_shared(self.shared_bytes, f"{self.stages} stages", machine)
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


SHAPES = (  # block_m, block_n, stages, CTAs an SM: fewest bytes loaded for each mma first
    (128, 256, 4, 1),
    (256, 128, 4, 1),
    (128, 128, 3, 2),
    (128, 192, 5, 1),
    (192, 128, 5, 1),
    (64, 256, 5, 1),
    (64, 128, 4, 2),
    (64, 64, 6, 2),
    (128, 64, 4, 2),
)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Tile shapes by estimated time, each with the two rasters that fit a wave of tiles best."""
    for block_m, block_n, stages, ctas in sorted(
        SHAPES, key=lambda shape: _tiles.estimated_clocks(problem, shape[0], shape[1], machine)
    ):
        for group_m in (16, 8):
            yield Schedule(block_m, block_n, stages, ctas, group_m)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return (
        Launch(
            kernel="gemm_wgmma",
            entry="gemm_wgmma",
            problem=problem,
            schedule=schedule,
            grid=(_tiles.tile_count(problem, schedule.block_m, schedule.block_n), 1, 1),
            block=(schedule.threads, 1, 1),
            arguments=_tiles.arguments(problem, schedule.block_m, schedule.block_n),
            shared_bytes=schedule.shared_bytes,
        ),
    )


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    return _tiles.theory(problem, schedule.block_m, schedule.block_n, _tiles.tiles_of(problem.m, schedule.block_m))


def simulate(launch: Launch, arrays: Mapping[str, NDArray] | None, machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = Chip(launch, machine)
    nothing = np.zeros((0, 0), np.uint16)
    x, w, y = (arrays[name] if arrays else nothing for name in ("x", "w", "y"))
    marks = [chip.marks(name) for name in ("x", "w", "y")]
    _grid(chip.count, *marks, x, w, y, p.m, p.n, p.k, launch.grid[0], s.block_m, s.block_n, s.group_m)
    return chip.counts()


@njit(cache=True, parallel=True)
def _grid(count, x_marks, w_marks, y_marks, x, w, y, m, n, k, tiles, block_m, block_n, group_m):
    sms = count.shape[0]
    for sm in prange(sms):
        x_tile = np.empty((block_m, BLOCK_K), np.float32)
        w_tile = np.empty((BLOCK_K, block_n), np.float32)  # transposed on its way in, as the mma wants it
        total = np.empty((block_m, block_n), np.float32)
        for cta in range(sm, tiles, sms):
            row, column = tile_at(cta, m, n, block_m, block_n, group_m)
            total[:] = 0
            for at in range(0, k, BLOCK_K):
                load_tile(count[sm], x_marks, x, m, k, row, at, x_tile)
                load_tile(count[sm], w_marks, w, n, k, column, at, w_tile.T)
                mma(count[sm], total, x_tile, w_tile, m - row, n - column, k - at, x.size > 0)
            for r in range(0, block_m, MMA_M):
                for c in range(0, block_n, BLOCK_K):
                    box = total[r : r + MMA_M, c : c + BLOCK_K]
                    store_tile(count[sm], y_marks, y, m, n, row + r, column + c, box)
