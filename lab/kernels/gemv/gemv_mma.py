"""Tensor cores for few tokens, weights straight from memory to their fragments: bf16, fp16, fp8, int4 groups."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from math import ceil, sqrt

from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import RANKING_CLOCK, Bills, Solves, require_choice, require_grid_y, require_resident, require_threads
from lab.kernels.common import linear
from lab.kernels.common.norm import joined
from lab.kernels.common.raster import tiles_of
from lab.kernels.gemv import gemv_mma_counts
from lab.kernels.gemv.mma_tiles import FLOAT, LANES, MMA_K, MMA_M, MMA_N
from lab.problems import Linear
from sim.counts import SECTOR, Counts
from sim.errors import ScheduleError
from sim.formats import FORMATS
from sim.launch import Launch
from sim.machine import Machine

SOLVES = Solves(
    Linear,
    formats=("bf16", "fp16", "fp8", "int4_g32", "int4_g64", "int4_g128"),
    arch="sm_90",
    row_bytes=16,
    why_multiple="a lane loads 16 bytes of a row",
    after="gemv_vectorized",
    options={"scales": ("tensor", "row"), "offset": ("zero",)},
    facts=("weights", "activations", "output", "scaled", "row_scales", "group", "zero_points"),
)


@dataclass(frozen=True)
class Schedule:
    """Rows of w and tokens of a CTA, its warps, and what a warp loads at once."""

    block_m: int  # tokens that a CTA computes
    rows: int  # row tiles of a warp
    teams: int  # groups of warps in a CTA, each with its own rows
    split_k: int  # warps of a team, which take the chunks along k in turn
    unroll: int  # runs of a chunk, two requests for each row tile
    fold: int  # parts of k in a request of row-major weights, 64 bytes of a row each
    ctas_per_sm: int  # CTAs that an SM has registers for
    late: int = 0  # 1: the launch behind begins when the loads here are done, 0: at once

    def __post_init__(self) -> None:
        require_choice(self, "late", (0, 1))
        require_choice(self, "block_m", (8, 16, 32))
        require_choice(self, "rows", (1, 2, 4, 8))
        require_choice(self, "teams", (1, 2, 4, 8))
        require_choice(self, "split_k", (1, 2, 4, 8, 16))
        require_choice(self, "unroll", (1, 2, 4))
        require_choice(self, "fold", (1, 2, 4))
        if self.warps > 16:
            raise ScheduleError(f"{self.teams} teams of {self.split_k} are {self.warps} warps; a CTA has at most 16")

    @property
    def warps(self) -> int:
        return self.teams * self.split_k

    @property
    def threads(self) -> int:
        return LANES * self.warps

    @property
    def tile_rows(self) -> int:
        """Rows of w of a row tile."""
        return MMA_M // self.fold

    @property
    def team_rows(self) -> int:
        return self.rows * self.tile_rows

    @property
    def block_n(self) -> int:
        """Rows of w of a CTA."""
        return self.teams * self.team_rows

    @property
    def sums_bytes(self) -> int:
        """Shared memory: a row of sums starts at another bank than the one before."""
        return FLOAT * self.warps * self.fold * self.block_m * (self.team_rows + 4)

    def fits(self, problem: Linear, machine: Machine) -> None:
        p = problem
        blocks = tiles_of(p.m, self.block_m)
        require_grid_y(blocks, f"{blocks:,} blocks of {self.block_m} tokens", machine)
        require_threads(self.ctas_per_sm, self.threads, machine)
        if self.sums_bytes > machine.static_shared_bytes:
            most = machine.static_shared_bytes
            raise ScheduleError(f"the sums of a CTA take {self.sums_bytes:,} B; static shared memory is {most:,} B")
        if p.group and (self.fold, self.block_m) != (1, MMA_N):
            have = f"fold = {self.fold}, block_m = {self.block_m}"
            raise ScheduleError(f"packed weights take fold = 1 and block_m = {MMA_N}; {have}")
        require_resident(self.ctas_per_sm, self.sums_bytes, self.threads, registers(p, self), machine)


def registers(problem: Linear, schedule: Schedule) -> int:
    """Of a thread: weights and x in flight, sums, a group's too, and the rest; fitted to what does not spill."""
    p, s = problem, schedule
    tokens = s.block_m // MMA_N
    x = 2 * s.fold * tokens * gemv_mma_counts.part_columns(p) // MMA_K
    loads = s.unroll * (8 * s.rows + x)
    sums = 4 * s.rows * s.fold * tokens
    if not p.group:
        return loads + sums + 20
    groups = gemv_mma_counts.part_columns(p) // p.group
    more = 14 + 5 * s.rows if groups > 1 else 0  # ptxas works at two groups at once
    return loads + 2 * s.unroll * s.rows * groups + 2 * sums + 4 * tokens + 8 + more


def held(problem: Linear, schedule: Schedule, machine: Machine) -> int:
    """CTAs that an SM holds: `ctas_per_sm` is the least that ptxas is to leave registers for, and it takes fewer.

    What it takes without that bound was read from what it said of 40 schedules.
    """
    s = schedule
    taken = registers(problem, s) + (20 if problem.group else 2) + 3 * min(8, s.rows * s.block_m // MMA_N)
    warp_registers = LANES * (-(-taken // 8) * 8)
    by_shared = machine.shared_bytes_per_sm // (s.sums_bytes + machine.reserved_shared_bytes)
    by_registers = machine.registers_per_sm // (warp_registers * s.warps)
    return max(s.ctas_per_sm, min(by_shared, by_registers, machine.threads_per_sm // s.threads, machine.ctas_per_sm))


TRIED = 48  # schedules that are worth trying
TEAMS = ((16, 1), (8, 1), (8, 2), (4, 1), (4, 2), (4, 4), (2, 1), (2, 2))  # split_k and teams
SHAPES = {  # by bits of a weight and tokens: rows, unroll, fold, and the warps for which an SM then has registers
    (16, 8): ((1, 4, 2, 20), (1, 2, 2, 24), (1, 2, 2, 32), (2, 4, 1, 16), (1, 2, 1, 32)),
    (16, 16): ((2, 2, 2, 16), (1, 2, 1, 32), (1, 4, 1, 16), (2, 2, 1, 16), (4, 1, 1, 16)),
    (16, 32): ((2, 1, 1, 16), (1, 2, 1, 16), (4, 1, 1, 12)),
    (8, 8): ((1, 2, 1, 32), (1, 2, 1, 24), (1, 2, 2, 24), (1, 4, 1, 16), (2, 1, 1, 24), (2, 2, 1, 16)),
    (8, 16): ((1, 1, 1, 32), (1, 2, 1, 24), (2, 2, 1, 16), (4, 1, 1, 16)),
    (8, 32): ((2, 1, 1, 16), (1, 1, 1, 16), (4, 1, 1, 12)),
    (4, 8): ((1, 1, 1, 32), (1, 1, 1, 24), (1, 2, 1, 16), (2, 1, 1, 16), (2, 2, 1, 16), (4, 1, 1, 16), (4, 1, 1, 12)),
}


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """The schedules of least predicted time."""
    p = problem
    block_m = 8 if p.m <= 8 or p.group else 16 if p.m <= 16 else 32
    found = []
    for (rows, unroll, fold, warps), (split_k, teams) in product(SHAPES[FORMATS[p.weights].bits, block_m], TEAMS):
        with suppress(ScheduleError):
            schedule = Schedule(block_m, rows, teams, split_k, unroll, fold, warps // (split_k * teams))
            schedule.fits(p, machine)
            found.append(schedule)
    yield from sorted(found, key=lambda s: bills(p, s, machine, RANKING_CLOCK).us)[:TRIED]


class Coefficients(fits.Coefficients, frozen=True):
    """What the estimate is made of."""

    start_us: float  # of a launch
    hbm_share: float  # of the rate of a large read
    short_share: float  # of that, where a request has 64 bytes of each row
    crossing: float  # more of HBM's and L2's time for a part of 64 bytes that begins amid a sector, as of fp8 it may
    l2_bytes_per_s: float  # to all SMs
    l1_bytes: float  # of x that an SM keeps, while weights pass by
    l2_bytes: float  # of w, that stay in L2 until the next row tile asks for them
    latency_us: float  # from asking for weights to having them, HBM being busy
    x_us: float  # more for each further eight tokens, whose x is waited for next
    cta_us: float  # of a CTA's start and end
    alone_us: float  # more, where an SM holds one; of several, one ends while others work
    tail: float  # of what the last wave lacks of a whole one, as part of one: its few CTAs are faster
    warp_ipc: float  # instructions a clock of one warp
    sm_ipc: float  # of all that an SM holds
    line_clocks: float  # of L1, for a line of x
    last_us: float  # of each further run of a last, not whole chunk, whose runs one warp takes one by one
    widen: float  # instructions of a warp for 16 x 16 weights of fp8
    fill: float  # of L1's and the instructions' time of a first round, which nothing hides yet
    blend: float  # exponent of the norm that joins what a launch waits for: near a tie, each delays the other


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """A start, and little more than the longest of four.

    The four are HBM; what all SMs read from L2, weights and x; the CTAs of an SM with the loads that they wait for;
    instructions.
    """
    p, s = problem, schedule
    model = fits.coefficients(Coefficients, "gemv_mma", machine, clock)
    ctas = tiles_of(p.n, s.block_n) * tiles_of(p.m, s.block_m)
    amid = not p.group and p.k * FORMATS[p.weights].bits // 8 % SECTOR != 0
    crossing = 1 + model.crossing / (s.unroll * s.fold) * amid  # neighbouring parts have the sector between them once
    weights = crossing * p.bytes["weights"] * tiles_of(p.m, s.block_m)
    share = model.hbm_share * (1.0 if p.group or s.fold > 1 else model.short_share)

    x = min(p.m, s.block_m) * p.k * 2
    resident = held(p, s, machine)
    first = min(ctas, machine.sms)
    again = first + (ctas - first) * max(0.0, 1 - model.l1_bytes / x)  # what fits stays in L1 for an SM's other CTAs

    passes = 1 + (tiles_of(p.m, s.block_m) - 1) * max(0.0, 1 - model.l2_bytes / p.bytes["weights"])
    read = p.read_bytes + (passes - 1) * p.bytes["weights"]  # again, for each row tile, what did not stay in L2

    us = 1e6 / machine.clock_hz
    run = _instructions(p, s, model.widen)
    own = s.rows * s.unroll * run / model.warp_ipc * us  # of a warp alone, once its loads are there
    round_us = model.latency_us + model.x_us * sqrt(max(0.0, _tokens(p, s) / MMA_N - 1)) + own
    cta_us = model.cta_us + model.alone_us / resident
    columns = s.fold * gemv_mma_counts.part_columns(p)
    rounds = tiles_of(tiles_of(p.k, s.unroll * columns), s.split_k)
    waves = max(1.0, ctas / (machine.sms * resident))
    last = max(0, tiles_of(p.k % (s.unroll * columns), columns) - 1) * model.last_us / waves
    full = tiles_of(ctas, machine.sms)  # CTAs of the fullest SM, one after another too
    runs = full * weights / ctas / (2 * LANES * 16)  # bytes, of a row tile; of that SM
    stream = {
        "HBM": 1e6 * crossing * (read + p.write_bytes) / (share * fits.read_rate(machine)),
        "L2": 1e6 * (weights + again * x) / model.l2_bytes_per_s,
        "latency": (waves + model.tail * (ceil(waves) - waves)) * (rounds * round_us + cta_us),
        "L1": runs * _lines(p, s) * model.line_clocks * us,
        "instructions": runs * run / model.sm_ipc * us,
    }
    fill = model.fill * (stream["L1"] + stream["instructions"]) / (rounds * ceil(waves))
    us = model.start_us + joined(model.blend, *stream.values()) + last + fill
    parts = {"launch": model.start_us, **stream, "last runs": last, "fill": fill}
    return Bills(us, parts, apart=("launch", "last runs", "fill"))


def _tokens(problem: Linear, schedule: Schedule) -> float:
    """Of a CTA, on average: the others that it computes are the last one again, which L1 then has."""
    return problem.m / tiles_of(problem.m, schedule.block_m)


def _lines(problem: Linear, schedule: Schedule) -> float:
    """Of x, that a warp asks L1 for beside a run: every request of it names a line for each token."""
    requests = (
        2 * gemv_mma_counts.part_columns(problem) // MMA_K if problem.group else 16 // FORMATS[problem.weights].bits
    )
    return requests * schedule.fold * _tokens(problem, schedule) / schedule.rows


def _instructions(problem: Linear, schedule: Schedule, widen: float) -> float:
    """That a warp issues for a run: loads, fragments, mma, its share of x and of the loop."""
    p, s = problem, schedule
    tokens, steps = s.block_m / MMA_N, gemv_mma_counts.part_columns(p) / MMA_K
    if p.group:
        groups = (8 * tokens + 10) * gemv_mma_counts.part_columns(p) / p.group
        return 2 + steps * (8 + tokens) + groups + (3 * steps * tokens + 16 / s.unroll) / s.rows
    narrow = FORMATS[p.weights].bits == 8
    x = s.fold * tokens * (2 if narrow else 1)
    return 2 + widen * steps * narrow + steps * s.fold * tokens + (x + 16 / s.unroll) / s.rows


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s = problem, schedule
    return (
        Launch(
            kernel="gemv_mma",
            entry="gemv_mma",
            problem=p,
            schedule=s,
            grid=(tiles_of(p.n, s.block_n), tiles_of(p.m, s.block_m), 1),
            block=(s.threads, 1, 1),
            arguments=linear.scaled_arguments(p),
            dependent=True,
        ),
    )


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """Every block of tokens requests w, every team of warps x, which leans on L1."""
    return gemv_mma_counts.theory(problem, schedule)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return gemv_mma_counts.simulate(launch, arrays, machine)
