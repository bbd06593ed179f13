"""One thread an output, x broadcast and w strided: the definition, and the floor of the ladder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Solves, require_choice, require_grid_y, require_threads
from lab.kernels.common import linear, thread_per_output
from lab.kernels.common.thread_per_output import LANES, warp
from lab.problems import Linear
from sim.counts import Counts
from sim.formats import encode
from sim.jit import njit
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import SimulatedChip

SOLVES = Solves(Linear, formats=("bf16", "fp32"), arch="sm_80")


@dataclass(frozen=True)
class Schedule:
    """The patch of y that a CTA computes, one thread an element."""

    block_m: int  # rows of y
    block_n: int  # columns of y, neighbouring lanes side by side

    def __post_init__(self) -> None:
        require_choice(self, "block_m", (1, 2, 4, 8, 16, 32))
        require_choice(self, "block_n", (32, 64, 128, 256, 512, 1024))

    @property
    def threads(self) -> int:
        return self.block_m * self.block_n

    def fits(self, problem: Linear, machine: Machine) -> None:
        require_threads(1, self.threads, machine)
        tiles = -(-problem.m // self.block_m)
        require_grid_y(tiles, f"{tiles:,} tiles of {self.block_m} rows", machine)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """Tall blocks first, whose rows share w in L1; one-row blocks first where there is one row."""
    shapes = ((32, 32), (16, 32), (8, 32), (4, 64), (1, 128))
    yield from (Schedule(*shape) for shape in (reversed(shapes) if problem.m == 1 else shapes))


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p = problem
    return (
        Launch(
            kernel="gemm_naive",
            entry="gemm_naive",
            problem=p,
            schedule=schedule,
            grid=(-(-p.n // schedule.block_n), -(-p.m // schedule.block_m), 1),
            block=(schedule.block_n, schedule.block_m, 1),
            arguments=linear.arguments(p),
        ),
    )


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    return thread_per_output.theory(problem)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    x_array, w_array, y_array = launch.arrays
    x, w = (arrays[a.name] if arrays else np.zeros((0, 0), a.storage) for a in (x_array, w_array))
    sums = np.zeros((p.m, p.n) if arrays else (0, 0), np.float32)
    marks = [chip.marks(name) for name in ("x", "w", "y")]
    size = y_array.storage.itemsize
    chip.on_all_cores(
        _grid, chip.count, *marks, x, w, sums, p.m, p.n, p.k, launch.grid[0], launch.grid[1], s.block_m, s.block_n, size
    )
    if arrays:
        arrays["y"][...] = encode(sums, p.output)
    return chip.counts()


@njit(cache=True, nogil=True)
def _grid(core, cores, count, x_marks, w_marks, y_marks, x, w, sums, m, n, k, grid_x, grid_y, block_m, block_n, size):
    sms = count.shape[0]
    for sm in range(core, sms, cores):
        for cta in range(sm, grid_x * grid_y, sms):
            top, left = cta // grid_x * block_m, cta % grid_x * block_n
            for row in range(top, min(top + block_m, m)):
                for column in range(left, min(left + block_n, n), LANES):
                    warp(count[sm], x_marks, w_marks, y_marks, x, w, sums, n, k, row, column, size, sums.size > 0)
