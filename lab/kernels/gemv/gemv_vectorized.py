"""16-byte coalesced loads, several in flight, weights read once past L1: decode at the speed of HBM."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import RANKING_CLOCK, Bills, Solves, require_choice, require_grid_y, require_threads
from lab.kernels.common import clusters, linear
from lab.kernels.common.norm import joined
from lab.kernels.gemv import dot_product
from lab.kernels.gemv.dot_product import ELEMENT, LANES
from lab.problems import Linear
from lab.problems.protocol import SQUARES
from sim.counts import SECTOR, Counts, row_sectors, sectors
from sim.errors import ScheduleError
from sim.formats import FORMATS
from sim.jit import njit
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import SimulatedChip, count_exp, count_fma, dot, load_vector, store_patch, store_vector

SOLVES = Solves(
    Linear,
    formats=("bf16", "fp16", "fp8"),
    arch="sm_80",
    arch_of={"fp8": "sm_89"},  # which converts e4m3
    multiple_of={"k": 8},
    why_multiple="rows are read in vectors of eight elements",
    after="gemv_coalesced",
    options={"scales": ("tensor", "row"), "epilogue": ("swiglu", "norm"), "prologue": ("norm",)},
    facts=("weights", "activations", "output", "scaled", "row_scales", "swiglu", "rooted", "summed"),
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
    most: int = 0  # CTAs that an SM holds at once, at most; 0: as many as fit

    def __post_init__(self) -> None:
        require_choice(self, "late", (0, 1))
        require_choice(self, "most", tuple(range(clusters.MOST + 1)))
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

    @property
    def squares(self) -> int:
        """Elements of a row whose squares are one sum."""
        return SQUARES

    def fits(self, problem: Linear, machine: Machine) -> None:
        if self.block_m > 1 and dot_product.is_joined(problem):
            raise ScheduleError(f"swiglu and norms take one token of a CTA; block_m = {self.block_m}")
        if self.rows == 1 and problem.swiglu:
            raise ScheduleError("swiglu takes two rows of a team, of the gate and of what it gates; rows = 1")
        if self.rows * self.teams % SQUARES and problem.summed:
            raise ScheduleError(f"a CTA sums squares of {SQUARES} rows at once; it has {self.teams} x {self.rows} rows")
        require_threads(self.ctas_per_sm, self.threads, machine)
        blocks = _blocks(problem, self)
        require_grid_y(blocks, f"{blocks:,} blocks of {self.block_m} tokens", machine)


def _columns(problem: Linear, schedule: Schedule) -> int:
    """Of y, that a team makes of a token."""
    return schedule.rows // 2 if problem.swiglu else schedule.rows


def _ctas(problem: Linear, schedule: Schedule) -> int:
    """For each block of tokens."""
    return -(-problem.columns // (_columns(problem, schedule) * schedule.teams))


def _blocks(problem: Linear, schedule: Schedule) -> int:
    """Blocks of tokens."""
    return -(-problem.m // schedule.block_m)


TRIED = 24  # schedules that are worth trying
TEAMS = ((8, 2), (8, 1), (4, 2), (4, 1), (2, 4), (2, 2), (2, 1), (1, 4), (1, 1))  # split_k and teams
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
    found, once = [], 1 if dot_product.is_joined(problem) else min(problem.m, max(SHAPES))
    for block_m, shapes in SHAPES.items():
        if once <= block_m < 2 * once:
            for (rows, unroll, *warps), (split_k, teams) in product(shapes, TEAMS):
                fp8 = problem.weights == "fp8"
                room = warps[fp8]
                room -= room // (4 if fp8 else 8) if problem.rooted else 0  # sums of squares take registers too
                ctas = min(room // (split_k * teams), machine.ctas_per_sm)
                if ctas >= 2:
                    schedule = Schedule(rows, split_k, teams, unroll, block_m, ctas)
                    with suppress(ScheduleError):  # it may have too few rows for an epilogue
                        schedule.fits(problem, machine)
                        found.append(schedule)
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
    ctas = _ctas(p, s) * _blocks(p, s)
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
            schedule=replace(s, most=0),  # of which code knows nothing
            grid=(_ctas(p, s), _blocks(p, s), 1),
            block=(s.threads, 1, 1),
            arguments=(*linear.scaled_arguments(p), *dot_product.joined_arguments(p)),
            shared_bytes=clusters.padded(0, s.most, machine),
            dependent=linear.overlaps(machine),
        ),
    )


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """Every block of tokens requests w, every team of warps x; both in requests of 256 elements. x leans on L1."""
    p, s = problem, schedule
    size, blocks = FORMATS[p.weights].storage.itemsize, _blocks(p, s)
    steps = [(k0, min(STEP, p.k - k0)) for k0 in range(0, p.k, STEP)]
    columns = _columns(p, s)
    chunks = [(column, min(columns, p.columns - column)) for column in range(0, p.columns, columns)]  # of a team
    w = blocks * sum(row_sectors(p.n, size * p.k, size * k0, size * width) for k0, width in steps)
    again = blocks * s.block_m - p.m  # the last token, in place of those beyond
    x = sum(
        row_sectors(p.m, ELEMENT * p.k, ELEMENT * k0, ELEMENT * width)
        + again * sectors(ELEMENT * ((p.m - 1) * p.k + k0), ELEMENT * width)
        for k0, width in steps
    )
    scales = 0
    if p.scaled:
        halves = (0, p.columns) if p.swiglu else (0,)
        of_rows = [sectors(FLOAT * (half + at), FLOAT * width) for half in halves for at, width in chunks]
        scales = blocks * (sum(of_rows) if p.row_scales else len(chunks))
    y = sum(row_sectors(p.m, ELEMENT * p.columns, ELEMENT * at, ELEMENT * width) for at, width in chunks)
    loads, stores = w + len(chunks) * x + scales, y - _shared_sectors(p, s, chunks)
    if p.rooted:
        loads += _ctas(p, s) * _squares_sectors(p.m, p.k, LANES)
    if p.summed:
        loads += y + p.m * sum(sectors(ELEMENT * at, ELEMENT * width) for at, width in chunks)
        stores += y + _squares_sectors(p.m, p.n, s.rows * s.teams // SQUARES)
    return dot_product.counts(p, loads=loads, stores=stores)


def _squares_sectors(m: int, extent: int, request: int) -> int:
    """Of the sums of squares of m rows of so many elements, so many in a request."""
    parts = -(-extent // SQUARES)
    widths = [(at, min(request, parts - at)) for at in range(0, parts, request)]
    return sum(row_sectors(m, FLOAT * parts, FLOAT * at, FLOAT * width) for at, width in widths)


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
    there = {**p.inputs, **p.outputs}
    marks = Marks(*(chip.marks(name) if name in there else np.zeros(0, np.uint8) for name in Marks._fields))
    chip.on_all_cores(
        _grid, chip.count, marks, x, w, sums, p.m, p.n, p.k, FORMATS[p.weights].storage.itemsize, launch.grid[0],
        launch.grid[1], s.rows, s.split_k, s.teams, s.block_m, p.row_scales, p.swiglu, SQUARES,
    )  # fmt: skip
    if arrays:
        dot_product.finish(p, sums, arrays)
    return chip.counts()


class Marks(NamedTuple):
    """Of every array that a launch may have, empty where it has none."""

    x: NDArray
    w: NDArray
    w_scale: NDArray
    y: NDArray
    squares: NDArray
    residual: NDArray
    norm: NDArray
    total: NDArray
    total_squares: NDArray


@njit(cache=True, nogil=True)
def _grid(
    core, cores,
    count, marks, x, w, sums, m, n, k, size, grid_x, grid_y, rows, split_k, teams, block_m, row_scales, swiglu, squares,
):  # fmt: skip
    sms = count.shape[0]
    halves = 2 if swiglu else 1
    columns, width_y = n // halves, rows // halves
    for sm in range(core, sms, cores):
        nothing = np.empty((block_m, width_y), np.float32)
        for cta in range(sm, grid_x * grid_y, sms):
            token0, block = cta // grid_x * block_m, cta % grid_x
            tokens = min(block_m, m - token0)
            for team in range(teams):
                column0 = (block * teams + team) * width_y
                if column0 >= columns:
                    break
                last = min(column0 + width_y, columns)
                if marks.w_scale.size > 0:
                    for half in range(halves if row_scales else 1):
                        first, scales = (half * columns + column0, last - column0) if row_scales else (0, 1)
                        load_vector(count[sm], marks.w_scale, FLOAT * first, FLOAT * scales)
                for warp in range(split_k):
                    for k0 in range(warp * STEP, k, split_k * STEP):
                        width = min(STEP, k - k0)
                        for t in range(block_m):
                            token = token0 + min(t, tokens - 1)
                            load_vector(count[sm], marks.x, ELEMENT * (token * k + k0), ELEMENT * width)
                        for half in range(halves):
                            for row in range(half * columns + column0, half * columns + last):
                                load_vector(count[sm], marks.w, size * (row * k + k0), size * width)
                                for token in range(token0, token0 + tokens):
                                    if sums.size > 0:
                                        sums[token, row] += dot(x, w, token, row, k0, width)
                                    count_fma(count[sm], width)
                store_patch(
                    count[sm], marks.y, ELEMENT, sums[:0, :0], m, columns, token0, column0,
                    nothing[:, : last - column0], block_m,
                )  # fmt: skip
                if swiglu:
                    count_exp(count[sm], tokens * (last - column0))
                if marks.total.size > 0:
                    at, nbytes = ELEMENT * (token0 * n + column0), ELEMENT * (last - column0)
                    load_vector(count[sm], marks.residual, at, nbytes)
                    load_vector(count[sm], marks.norm, ELEMENT * column0, nbytes)
                    store_vector(count[sm], marks.total, at, nbytes)
            if marks.squares.size > 0:
                parts = -(-k // squares)
                for at in range(0, parts, LANES):
                    nbytes = FLOAT * min(LANES, parts - at)
                    load_vector(count[sm], marks.squares, FLOAT * (token0 * parts + at), nbytes)
            if marks.total.size > 0:
                own, parts = teams * rows // squares, -(-n // squares)
                nbytes = FLOAT * min(own, parts - block * own)
                store_vector(count[sm], marks.total_squares, FLOAT * (token0 * parts + block * own), nbytes)
