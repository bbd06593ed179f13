"""16-byte coalesced loads, several in flight, weights read once past L1: decode at the speed of HBM."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import RANKING_CLOCK, Bills, Solves, require_choice, require_grid_y, require_threads
from lab.kernels.common import linear
from lab.kernels.common.norm import joined
from lab.kernels.gemv import dot_product
from lab.kernels.gemv.dot_product import ELEMENT, LANES
from lab.problems import Linear
from sim.counts import SECTOR, Counts, row_sectors, sectors
from sim.errors import ScheduleError
from sim.formats import FORMATS, encode
from sim.jit import njit
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import SimulatedChip, count_fma, dot, load_vector, store_patch

SOLVES = Solves(
    Linear,
    formats=("bf16", "fp16", "fp8"),
    arch="sm_80",
    arch_of={"fp8": "sm_89"},  # which converts e4m3
    multiple_of={"k": 8},
    why_multiple="rows are read in vectors of eight elements",
    after="gemv_coalesced",
    options={"scales": ("tensor", "row")},
    facts=("weights", "activations", "output", "scaled", "row_scales"),
)

FLOAT = 4  # bytes of a scale
STEP = 256  # elements of a row that one warp request covers: 8 a lane


@dataclass(frozen=True)
class Schedule:
    """Rows of w by team of warps, and tokens."""

    rows: int  # rows of w that a warp accumulates at once
    split_k: int  # warps that share a row, each every split_k-th k-step
    teams: int  # such groups of warps in a CTA
    unroll: int  # k-steps whose loads are in flight together
    block_m: int = 1  # tokens that a CTA computes in one pass over its rows
    ctas_per_sm: int = 1  # CTAs that an SM has registers for, at least
    late: int = 0  # 1: the launch behind begins when the loads here are done, 0: at once

    def __post_init__(self) -> None:
        require_choice(self, "late", (0, 1))
        require_choice(self, "rows", (1, 2, 4, 8))
        require_choice(self, "split_k", (1, 2, 4, 8, 16, 32))
        require_choice(self, "teams", (1, 2, 4, 8, 16, 32))
        require_choice(self, "unroll", (1, 2, 4, 8))
        require_choice(self, "block_m", (1, 2, 4, 8))
        if self.rows * self.unroll > 16:
            raise ScheduleError(
                f"rows x unroll is {self.rows * self.unroll} vectors in flight a lane; registers hold 16"
            )
        if self.rows * self.block_m > 32:
            raise ScheduleError(f"rows x block_m is {self.rows * self.block_m} sums of a team; a warp stores 32")

    @property
    def threads(self) -> int:
        return LANES * self.split_k * self.teams

    def fits(self, problem: Linear, machine: Machine) -> None:
        require_threads(self.ctas_per_sm, self.threads, machine)
        blocks = _blocks(problem, self)
        require_grid_y(blocks, f"{blocks:,} blocks of {self.block_m} tokens", machine)


def _blocks(problem: Linear, schedule: Schedule) -> int:
    """Blocks of tokens."""
    return -(-problem.m // schedule.block_m)


TRIED = 24  # schedules that are worth trying
TEAMS = ((8, 2), (8, 1), (4, 2), (4, 1), (2, 2), (2, 1), (1, 4), (1, 1))  # split_k and teams
SHAPES = {  # by tokens: rows, unroll, and the warps for which an SM then has registers, of 16-bit weights and of fp8
    1: ((1, 4, 32, 32), (1, 2, 32, 48), (2, 4, 16, 24), (4, 2, 20, 32), (4, 1, 24, 24), (1, 8, 0, 28)),
    2: ((2, 2, 32, 36), (2, 4, 20, 28), (4, 1, 24, 28)),
    4: ((4, 1, 24, 24), (2, 2, 24, 28), (4, 2, 16, 20)),
    8: ((4, 1, 16, 16), (2, 2, 16, 16)),
}


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """The schedules of least predicted time that read w as few times as can be.

    Two CTAs an SM at least: while one ends, the other reads.
    """
    found, once = [], min(problem.m, max(SHAPES))
    for block_m, shapes in SHAPES.items():
        if once <= block_m < 2 * once:
            for (rows, unroll, *warps), (split_k, teams) in product(shapes, TEAMS):
                ctas = min(warps[problem.weights == "fp8"] // (split_k * teams), machine.ctas_per_sm)
                if ctas >= 2:
                    found.append(Schedule(rows, split_k, teams, unroll, block_m, ctas))
    yield from sorted(found, key=lambda s: bills(problem, s, machine, RANKING_CLOCK).us)[:TRIED]


class Coefficients(fits.Coefficients, frozen=True):
    """What the estimate is made of."""

    start_us: float  # of a launch
    hbm_share: float  # of the rate of a large read
    latency_us: float  # from asking for weights to having them, HBM being busy
    cta_us: float  # of a CTA's start and end
    sum_us: float  # more for each sum of a team, which all lanes share
    x_us: float  # more for each token of a block after the first, whose x is waited for next
    round_loss: float  # of the time of the loads that a row's last round leaves out, were one load a round
    token_loss: float  # of HBM's rate, for each token of a block after the first, were it one row of w a team
    warp_us_per_kb: float  # at the end: what a warp streams, as not all end together
    most_warp_us: float  # of that
    sm_ipc: float  # instructions a clock of an SM
    l1_bytes_per_clock: float  # of an SM, of weights and of x
    blend: float  # exponent of the norm that joins what a launch waits for: near a tie, each delays the other


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """A start; little more than the longest of four, HBM, the loads in flight, instructions, L1; the last warps."""
    p, s = problem, schedule
    model = fits.coefficients(Coefficients, "gemv_vectorized", machine, clock)
    size = FORMATS[p.weights].storage.itemsize
    weights = _blocks(p, s) * p.n * p.k * size
    steps = -(-p.k // STEP)
    rounds = -(-steps // (s.split_k * s.unroll))
    ctas = -(-p.n // (s.rows * s.teams)) * _blocks(p, s)
    cta = (
        rounds * (model.latency_us + model.x_us * (s.block_m - 1))
        + model.cta_us
        + model.sum_us * (s.rows * s.block_m) ** 2
    )
    loss = model.round_loss * (rounds * s.split_k * s.unroll / steps - 1) / (s.rows * s.unroll)
    share = weights / min(machine.sms, ctas)  # of an SM
    between = 1 + model.token_loss * (s.block_m - 1) / s.rows  # loads of x, which those of w wait behind
    stream = {
        "HBM": (weights + p.bytes["activations"]) / (model.hbm_share * fits.read_rate(machine)) * (1 + loss) * between,
        "latency": -(-ctas // (machine.sms * s.ctas_per_sm)) * cta * 1e-6,
        "instructions": share / (STEP * size) * _instructions(p, s) / (model.sm_ipc * machine.clock_hz),
        "L1": share * (1 + s.block_m / s.rows * ELEMENT / size) / (model.l1_bytes_per_clock * machine.clock_hz),
    }
    last = min(model.most_warp_us, s.rows * p.k * size / s.split_k / 1024 * model.warp_us_per_kb)
    us = model.start_us + 1e6 * joined(model.blend, *stream.values()) + last
    longest = {what: 1e6 * each for what, each in stream.items()}
    return Bills(us, {"launch": model.start_us, **longest, "last warps": last}, apart=("launch", "last warps"))


def _instructions(problem: Linear, schedule: Schedule) -> float:
    """That a warp issues for a load of weights: to widen them, to multiply, for its share of x and of the loop."""
    widen = 16 if problem.weights == "fp8" else 8
    return widen + 8 * schedule.block_m + 12 * schedule.block_m / schedule.rows + 4


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s = problem, schedule
    return (
        Launch(
            kernel="gemv_vectorized",
            entry="gemv_vectorized",
            problem=p,
            schedule=s,
            grid=(-(-p.n // (s.rows * s.teams)), _blocks(p, s), 1),
            block=(s.threads, 1, 1),
            arguments=linear.scaled_arguments(p),
            dependent=linear.overlaps(machine),
        ),
    )


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """Every block of tokens requests w, every team of warps x; both in requests of 256 elements. x leans on L1."""
    p, s = problem, schedule
    size, blocks = FORMATS[p.weights].storage.itemsize, _blocks(p, s)
    steps = [(k0, min(STEP, p.k - k0)) for k0 in range(0, p.k, STEP)]
    chunks = [(row, min(s.rows, p.n - row)) for row in range(0, p.n, s.rows)]  # of a team
    w = blocks * sum(row_sectors(p.n, size * p.k, size * k0, size * width) for k0, width in steps)
    again = blocks * s.block_m - p.m  # the last token, in place of those beyond
    x = sum(
        row_sectors(p.m, ELEMENT * p.k, ELEMENT * k0, ELEMENT * width)
        + again * sectors(ELEMENT * ((p.m - 1) * p.k + k0), ELEMENT * width)
        for k0, width in steps
    )
    scales = 0
    if p.scaled:
        scales = blocks * sum(sectors(FLOAT * row, FLOAT * rows) if p.row_scales else 1 for row, rows in chunks)
    y = sum(row_sectors(p.m, ELEMENT * p.n, ELEMENT * row, ELEMENT * rows) for row, rows in chunks)
    return dot_product.counts(p, loads=w + len(chunks) * x + scales, stores=y - _shared_sectors(p, s, chunks))


def _shared_sectors(problem: Linear, schedule: Schedule, chunks: list[tuple[int, int]]) -> int:
    """Sectors of y that two neighbouring tokens of a block share, so that a request has them once."""
    row_bytes = ELEMENT * problem.n
    if row_bytes >= SECTOR + ELEMENT * schedule.rows:
        return 0
    return sum(
        (token * row_bytes + ELEMENT * (row + rows) - 1) // SECTOR
        == ((token + 1) * row_bytes + ELEMENT * row) // SECTOR
        for row, rows in chunks
        for token in range(problem.m - 1)
        if (token + 1) % schedule.block_m
    )


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    x, w = dot_product.operands(p, arrays)
    sums = np.zeros((p.m, p.n) if arrays else (0, 0), np.float32)
    marks = [chip.marks(name) for name in ("x", "w", "y")]
    scale_marks = chip.marks("w_scale") if p.scaled else np.zeros(0, np.uint8)
    chip.on_all_cores(
        _grid, chip.count, *marks, scale_marks, x, w, sums, p.m, p.n, p.k, FORMATS[p.weights].storage.itemsize,
        launch.grid[0], launch.grid[1], s.rows, s.split_k, s.teams, s.block_m, p.row_scales,
    )  # fmt: skip
    if arrays:
        arrays["y"][...] = encode(sums * arrays["w_scale"] if p.scaled else sums, p.output)
    return chip.counts()


@njit(cache=True, nogil=True)
def _grid(
    core, cores,
    count, x_marks, w_marks, y_marks, scale_marks, x, w, sums, m, n, k, size, grid_x, grid_y, rows, split_k, teams,
    block_m, row_scales,
):  # fmt: skip
    sms = count.shape[0]
    for sm in range(core, sms, cores):
        nothing = np.empty((block_m, rows), np.float32)
        for cta in range(sm, grid_x * grid_y, sms):
            token0 = cta // grid_x * block_m
            tokens = min(block_m, m - token0)
            for team in range(teams):
                row0 = (cta % grid_x * teams + team) * rows
                if row0 >= n:
                    break
                last = min(row0 + rows, n)
                if scale_marks.size > 0:
                    first, scales = (row0, last - row0) if row_scales else (0, 1)
                    load_vector(count[sm], scale_marks, FLOAT * first, FLOAT * scales)
                for warp in range(split_k):
                    for k0 in range(warp * STEP, k, split_k * STEP):
                        width = min(STEP, k - k0)
                        for row in range(row0, last):
                            load_vector(count[sm], w_marks, size * (row * k + k0), size * width)
                        for t in range(block_m):
                            token = token0 + min(t, tokens - 1)
                            load_vector(count[sm], x_marks, ELEMENT * (token * k + k0), ELEMENT * width)
                        for token in range(token0, token0 + tokens):
                            for row in range(row0, last):
                                if sums.size > 0:
                                    sums[token, row] += dot(x, w, token, row, k0, width)
                                count_fma(count[sm], width)
                store_patch(
                    count[sm], y_marks, ELEMENT, sums[:0, :0], m, n, token0, row0, nothing[:, : last - row0], block_m
                )
