"""A warpgroup copies whole lines by cp.async where TMA takes two for one: rows that begin anywhere in a line."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lab.kernel import RANKING_CLOCK, Bills, Solves, require_choice, require_shared
from lab.kernels.common.raster import tile_at, tiles_of
from lab.kernels.gemm import wgmma_epilogue, wgmma_mainloop, wgmma_model
from lab.kernels.gemm.warp_roles import Y_BOX, RoleTiling
from lab.kernels.gemm.wgmma_mainloop import FACTS
from lab.problems import Linear
from sim.cache.walk import LINE
from sim.counts import SECTOR, Counts, row_sectors
from sim.errors import ScheduleError
from sim.formats import FORMATS, decode
from sim.jit import njit, prange
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import ELEMENT, SimulatedChip, load_vector, mma, store_tile
from sim.tiles.memory import assign

SOLVES = Solves(
    Linear,
    formats=("bf16", "fp16"),
    arch="sm_90a",
    row_bytes=16,
    why_multiple="rows are copied in 16-byte chunks",
    after="gemm_persistent",
    facts=FACTS,
)

LEAST_STAGES = 3  # lanes fill one stage while those a step ahead wait for the next


@dataclass(frozen=True)
class Schedule(RoleTiling):
    """The tile of a CTA, half of its rows in each consumer, its ring, its epilogue's buffers."""

    y_boxes: int  # 64 rows of 128 bytes of y that each consumer stages for the stores
    group_m: int  # tile rows walked together, so that x and w are shared in L2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "y_boxes", (1, 2, 3, 4))
        if self.stages < LEAST_STAGES:
            raise ScheduleError(f"lanes that are a step behind need {LEAST_STAGES} stages; stages = {self.stages}")

    @property
    def y_bytes(self) -> int:
        return self.y_boxes * Y_BOX

    def fits(self, problem: Linear, machine: Machine) -> None:
        require_shared(self.shared_bytes, f"{self.stages} stages and {self.y_boxes} boxes", machine)
        wgmma_mainloop.require_whole(problem, self.block_n)


SHAPES = (  # m, n, stages, boxes of y
    (128, 256, 4, 2),
    (256, 128, 4, 2),
    (128, 192, 5, 1),
    (128, 192, 4, 3),
    (128, 160, 5, 2),
    (128, 128, 6, 2),
    (128, 64, 8, 1),
)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Tile shapes by predicted time, each with the raster that shares most in a wave and with half of it."""
    schedules = []
    for shape in SHAPES:
        best = wgmma_model.best_group(machine.sms, *shape[:2])
        schedules += [Schedule(*shape, group_m) for group_m in dict.fromkeys((best, max(1, best // 2)))]
    yield from sorted(schedules, key=lambda s: bills(problem, s, machine, RANKING_CLOCK).us)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    tiles = wgmma_mainloop.tile_count(problem, schedule.block_m, schedule.block_n)
    (one,) = wgmma_mainloop.launch("gemm_whole_lines", problem, schedule, min(tiles, machine.sms))
    _, _, y_map, *arrays = one.arguments
    return (replace(one, arguments=(y_map, *arrays)),)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """As through TMA, but warps ask for the sectors of x and w, each of a tile's rows once: a line is one request."""
    p, s = problem, schedule
    tiles_m, tiles_n = tiles_of(p.m, s.block_m), tiles_of(p.n, s.block_n)
    row = p.k * FORMATS[p.activations].storage.itemsize
    sectors = tiles_n * row_sectors(p.m, row, 0, row) + tiles_m * row_sectors(p.n, row, 0, row)
    through_tma = wgmma_mainloop.theory(p, s)
    return replace(through_tma, global_load_sectors=sectors, l2_to_sm_bytes=SECTOR * sectors, tma_load_bytes=0)


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """As gemm_persistent's of rows that begin with a line, whatever these begin with."""
    s, model = schedule, wgmma_model.coefficients(machine, clock)
    between = model.tile_clocks + wgmma_model.epilogue_clocks(problem, s.block_m, s.block_n, model)
    return wgmma_model.tiled_bills(problem, s.block_m, s.block_n, 1, between, machine, model, crosses=False)


requested = wgmma_mainloop.requested


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    nothing = np.zeros((0, 0), np.float32)
    x, w = (decode(arrays[name], p.weights) if arrays else nothing for name in ("x", "w"))
    y = arrays["y"] if arrays else np.zeros((0, 0), launch.arrays[2].storage)
    marks = [chip.marks(name) for name in ("x", "w", "y")]
    size, step = FORMATS[p.activations].storage.itemsize, wgmma_mainloop.step_of(p)
    tile = (s.block_m, s.block_n, step, s.group_m, wgmma_mainloop.box_columns(p, s.block_n))
    _grid(chip.count, *marks, x, w, y, p.m, p.n, p.k, launch.grid[0], *tile, size, ELEMENT[p.output])
    return chip.counts(requested(launch, machine))


@njit(cache=True, parallel=True)
def _grid(
    count, x_marks, w_marks, y_marks, x, w, y, m, n, k, workers, block_m, block_n, step, group_m, box, size, output
):  # fmt: skip
    tiles = -(-m // block_m) * -(-n // block_n)
    for cta in prange(workers):
        counter = count[cta]
        x_tile = np.empty((block_m, step), np.float32)
        w_tile = np.empty((step, block_n), np.float32)  # transposed on its way in, as the mma wants it
        total = np.empty((block_m, block_n), np.float32)
        for index in range(cta, tiles, workers):
            row, column = tile_at(index, m, n, block_m, block_n, group_m)
            total[:] = 0
            _copy_lines(counter, x_marks, size * k, row, min(row + block_m, m))
            _copy_lines(counter, w_marks, size * k, column, min(column + block_n, n))
            for at in range(0, k, step):
                _place(x_tile, x, row, at)
                _place(w_tile.T, w, column, at)
                mma(counter, total, x_tile, w_tile, m - row, n - column, k - at, x.size > 0)
            for r in range(0, block_m, wgmma_epilogue.MMA_M):
                for c in range(0, block_n, box):
                    part = total[r : r + wgmma_epilogue.MMA_M, c : c + box]
                    store_tile(counter, y_marks, y, m, n, row + r, column + c, part, output)


@njit(cache=True)
def _copy_lines(count, marks, row_bytes, first, end):
    """A tile's rows, line by line; a request's four rows are too far apart to share a sector."""
    for row in range(first, end):
        start, beyond = row_bytes * row, row_bytes * (row + 1)
        for at in range(start // LINE * LINE, beyond, LINE):
            begin = max(at, start)
            load_vector(count, marks, begin, min(at + LINE, beyond) - begin)


@njit(cache=True)
def _place(tile, source, row, at):
    """What a k-step has of an operand's rows, zeros beyond its edges; nothing where it is empty."""
    if source.size > 0:
        height, width = min(tile.shape[0], source.shape[0] - row), min(tile.shape[1], source.shape[1] - at)
        tile[:] = 0
        assign(tile[:height, :width], source[row : row + height, at : at + width])
