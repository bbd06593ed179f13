"""Tensor cores for few tokens and int4 groups: packed fragments stream as their A operand, so one pass serves all."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product

from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import RANKING_CLOCK, Bills, Solves, require_choice, require_grid_y, require_resident, require_shared
from lab.kernels.common import clusters, linear
from lab.kernels.common.norm import joined
from lab.kernels.common.pointers import pointer
from lab.kernels.common.raster import tiles_of
from lab.kernels.gemv import gemv_int4_counts
from lab.kernels.gemv.dot_product import is_joined, joined_arguments
from lab.kernels.gemv.gemv_int4_counts import BLOCK_K, scale_bytes
from lab.kernels.gemv.mma_tiles import FLOAT, LANES, MMA_K, MMA_M, MMA_N, SIZE
from lab.problems import Linear
from lab.problems.protocol import SQUARES
from sim.counts import Counts
from sim.errors import ScheduleError
from sim.launch import Launch
from sim.machine import Machine

SOLVES = Solves(
    Linear,
    formats=("int4_g32", "int4_g64", "int4_g128"),
    arch="sm_90",
    row_bytes=16,
    why_multiple="rows are copied in 16-byte vectors",
    after="gemv_mma",
    options={"offset": ("zero",), "order": ("given",), "epilogue": ("swiglu", "norm"), "prologue": ("norm",)},
    facts=("group", "zero_points", "ordered", "swiglu", "rooted", "summed"),
)

WEIGHTS_BYTES = MMA_M * BLOCK_K // 2  # of a row tile in a step: what a warp copies of it in two requests
PARTS = 15  # in which x comes, at most: each is twice the one before
BARRIERS_BYTES = 128  # of them, and of one for the cluster
ALIGNED = 128  # bytes: where a ring begins
X_PAD = 16  # bytes between rows of x, modulo 128, for the banks of fragments
SCALED_AT_ONCE = 8  # row tiles and groups whose scales a warp copies in one request
SUMS_PAD = 4  # floats between the sums of two tokens, for their banks


@dataclass(frozen=True)
class Schedule:
    """Rows of w and tokens of a CTA, its warps, its share of k, and the ring of each warp."""

    block_m: int  # tokens that a CTA computes
    rows: int  # row tiles, of 16 rows of w, of a warp
    teams: int  # groups of warps in a CTA, each with its own rows
    split_k: int  # warps of a team, which take the steps along k in turn
    cluster: int  # CTAs that share the same rows, each with its own part of k
    stages: int  # steps that the ring of a warp holds
    ctas_per_sm: int  # CTAs that an SM has registers for; how long k is says whether x leaves them room
    late: int = 0  # 1: the launch behind begins when the loads here are done, 0: at once
    most: int = 0  # CTAs that an SM holds at once, at most; 0: as many as fit

    def __post_init__(self) -> None:
        require_choice(self, "late", (0, 1))
        require_choice(self, "most", tuple(range(clusters.MOST + 1)))
        require_choice(self, "block_m", (8, 16, 32))
        require_choice(self, "rows", (1, 2, 4, 8))
        require_choice(self, "teams", (1, 2, 4, 8, 16))
        require_choice(self, "split_k", (1, 2, 4, 8, 16))
        require_choice(self, "cluster", tuple(range(1, 9)))
        require_choice(self, "ctas_per_sm", (1, 2, 3, 4, 8))
        if self.warps > 16:
            raise ScheduleError(f"{self.teams} teams of {self.split_k} are {self.warps} warps; a CTA has at most 16")
        if not 2 <= self.stages <= 64:
            raise ScheduleError(f"a ring has 2 to 64 stages; stages = {self.stages}")

    @property
    def warps(self) -> int:
        return self.teams * self.split_k

    @property
    def threads(self) -> int:
        return LANES * self.warps

    @property
    def block_n(self) -> int:
        """Rows of w of a CTA."""
        return MMA_M * self.rows * self.teams

    @property
    def block_k(self) -> int:
        """Columns of w in a step of a warp."""
        return BLOCK_K

    @property
    def parts(self) -> int:
        return PARTS

    @property
    def squares(self) -> int:
        """Elements of a row whose squares are one sum."""
        return SQUARES

    def fits(self, problem: Linear, machine: Machine) -> None:
        p = problem
        blocks = tiles_of(p.m, self.block_m)
        require_grid_y(blocks, f"{blocks:,} blocks of {self.block_m} tokens", machine)
        steps = tiles_of(p.k, BLOCK_K)
        if steps < self.cluster:
            raise ScheduleError(f"each of {self.cluster} CTAs takes a step along k or more; k = {p.k} has {steps}")
        if p.swiglu and (self.rows % 2 or self.rows * BLOCK_K > SCALED_AT_ONCE * p.group):
            raise ScheduleError(
                f"swiglu takes even numbers of row tiles, of {SCALED_AT_ONCE} groups in a step at most; "
                f"there are {self.rows} tiles in groups of {p.group}"
            )
        part = gemv_int4_counts.out_of(p, self).part
        if p.summed and part % SQUARES:
            raise ScheduleError(f"a CTA sums squares of {SQUARES} rows at once; it has {part} rows")
        shared = shared_bytes(p, self)
        require_shared(shared, f"{self.stages} stages of {self.warps} warps, and x", machine)
        require_resident(self.ctas_per_sm, 0, self.threads, registers(p, self), machine)


def registers(problem: Linear, schedule: Schedule) -> int:
    """Of a thread: sums, a group's too, fragments, and the rest; fitted to what compiles without spilling."""
    tokens, rows = schedule.block_m // MMA_N, schedule.rows
    more = 6 if is_joined(problem) else 0
    if problem.group < BLOCK_K:  # two groups at once
        return max(44, 18 * rows * tokens + 12 * tokens + 12) + more
    return 8 * rows * tokens + 14 * tokens + 6 * rows + 16 + more


def warp_bytes(problem: Linear, schedule: Schedule) -> int:
    """Shared memory of a warp: its ring, or in its place its sums."""
    s = schedule
    stage = s.rows * (WEIGHTS_BYTES + scale_bytes(problem))
    return tiles_of(max(s.stages * stage, s.block_m * (s.rows * MMA_M + SUMS_PAD) * FLOAT), ALIGNED) * ALIGNED


def shared_bytes(problem: Linear, schedule: Schedule) -> int:
    """The warps' rings, barriers, a cluster's inboxes, every token's columns of x and what joined norms need of it.

    For an order all of x too.
    """
    p, s = problem, schedule
    part = gemv_int4_counts.out_of(p, s).part
    inboxes = s.cluster * s.block_m * part * p.n // p.columns * FLOAT if s.cluster > 1 else 0
    pitch = SIZE * BLOCK_K * tiles_of(tiles_of(p.k, BLOCK_K), s.cluster) + X_PAD
    whole = SIZE * p.k if p.ordered else 0  # a row of x as it lies
    squares = FLOAT * tiles_of(p.k, SQUARES) if p.rooted else 0
    roots = FLOAT * s.warps if p.rooted else 0
    added = SIZE * part if p.summed else 0
    of_tokens = min(p.m, s.block_m) * (pitch + whole + roots + added)
    return s.warps * warp_bytes(p, s) + BARRIERS_BYTES + inboxes + of_tokens + squares + added


IN_FLIGHT = 96 * 1024  # bytes of weights that an SM's rings ask for, at most: more than its share of HBM's latency
SM_WARPS = (32, 16)  # that an SM holds; registers do not always allow the first
TRIED = 64  # schedules that are worth trying
SHORTEST = (2, 3)  # stages: what follows a short ring's copies is soon there, and x has its room
CLUSTERS = (1, 2, 4, 6, 7, 8)  # seven leave the fewest SMs of a GPC without one
WARP_SHAPES = (  # rows, teams, split_k
    (1, 1, 4), (1, 1, 8), (1, 1, 16), (1, 2, 4), (1, 2, 8), (1, 4, 2), (1, 4, 4), (1, 8, 1), (1, 8, 2), (2, 1, 4),
    (2, 1, 8), (2, 1, 16), (2, 2, 4), (2, 2, 8), (2, 4, 2), (2, 4, 4), (2, 8, 1), (2, 8, 2), (4, 1, 8),
    (4, 2, 4), (4, 2, 8), (4, 4, 2), (4, 4, 4),
)  # fmt: skip


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """The schedules of least predicted time among warp shapes and splits, with short rings and with deep ones."""
    blocks = (8,) if problem.m <= 8 else (16, 8) if problem.m <= 16 else (32, 16)
    found = [
        schedule
        for block_m, shape, cluster in product(blocks, WARP_SHAPES, CLUSTERS)
        for schedule in _rings(problem, block_m, shape, cluster, machine)
    ]
    shape = next(shape for shape in WARP_SHAPES if _joins(problem, shape))
    least = Schedule(blocks[-1], *shape, CLUSTERS[-1], stages=2, ctas_per_sm=1)  # leaves most room for x
    tried: dict[tuple[int, ...], Schedule] = {}  # the best of its kind, the best first
    for s in sorted(found or [least], key=lambda s: bills(problem, s, machine, RANKING_CLOCK).us):
        tried.setdefault((s.block_m, s.rows, s.teams, s.split_k, s.cluster, s.stages), s)
    of_cluster = {s.cluster: s for s in reversed(tried.values())}.values()  # the best for each size
    others = [s for s in tried.values() if s not in of_cluster][: TRIED - len(of_cluster)]
    kept = {*of_cluster, *others}
    yield from (s for s in tried.values() if s in kept)


def _joins(problem: Linear, shape: tuple[int, int, int]) -> bool:
    """Whether each CTA of the largest cluster has two halves, or rows for a sum of squares."""
    rows, teams, _ = shape
    return not (problem.swiglu and rows % 2) and not (
        problem.summed and rows * teams * MMA_M % (CLUSTERS[-1] * SQUARES)
    )


def _rings(
    problem: Linear, block_m: int, shape: tuple[int, int, int], cluster: int, machine: Machine
) -> Iterator[Schedule]:
    """The schedules with as many warps an SM as fit, each with short rings and the longest that has room and a use.

    Where x alone takes that room, one CTA has the SM; none where that is not legal either.
    """
    warps = shape[1] * shape[2]
    reserved = machine.reserved_shared_bytes
    half = machine.shared_bytes_per_sm // 2 - reserved  # two CTAs on an SM, or one and a dependent launch's
    choices = [(max(1, n // warps), min(half, machine.shared_bytes_per_sm * warps // n - reserved)) for n in SM_WARPS]
    for ctas, room in (*choices, (1, machine.shared_bytes_per_block)):
        with suppress(ScheduleError):
            least = Schedule(block_m, *shape, cluster, 2, ctas)
            least.fits(problem, machine)
            steps = tiles_of(tiles_of(problem.k, BLOCK_K), cluster * least.split_k)
            useful = IN_FLIGHT // (ctas * warps * least.rows * WEIGHTS_BYTES)
            beside = shared_bytes(problem, least) - warps * warp_bytes(problem, least)
            stage = least.rows * (WEIGHTS_BYTES + scale_bytes(problem))
            fitting = (room - beside) // warps // ALIGNED * ALIGNED // stage
            longest = min(max(2, min(steps, useful)), fitting)
            if shared_bytes(problem, least) <= room:
                yield from (replace(least, stages=n) for n in sorted({*SHORTEST, longest}) if n <= longest)
                return


class Coefficients(fits.Coefficients, frozen=True):
    """What the estimate is made of."""

    start_us: float  # of a launch, to its first weights
    hbm_share: float  # of the rate of a large read
    l2_bytes_per_s: float  # to all SMs
    latency_us: float  # from asking for weights to their bytes, HBM being busy
    warp_ipc: float  # instructions a clock of one warp
    sm_ipc: float  # of all that an SM holds
    promote: float  # instructions of a warp for the sums of eight tokens and a group
    sums_us: float  # of the sums in a CTA
    warp_us: float  # more for each of its warps
    cluster_us: float  # more in a cluster
    sum_bytes_per_us: float  # of sums that an SM writes and adds
    wave_us: float  # of a CTA that follows another on its SM
    blend: float  # exponent of the norm that joins what a launch waits for: near a tie, each delays the other


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """A start; little more than the longest of four; the sums.

    The four are HBM; what the fullest SM reads from L2, weights and x; what the rings keep in flight; instructions.
    """
    p, s = problem, schedule
    model = fits.coefficients(Coefficients, "gemv_int4", machine, clock)
    blocks, token_blocks = tiles_of(p.n, s.block_n), tiles_of(p.m, s.block_m)
    shared = clusters.padded(shared_bytes(p, s), s.most, machine) + machine.reserved_shared_bytes
    taken = LANES * (-(-registers(p, s) * 5 // 32) * 8)  # by a warp: what ptxas takes where it is not bound
    by_registers = max(s.ctas_per_sm, machine.registers_per_sm // (taken * s.warps))
    resident = max(1, min(by_registers, machine.shared_bytes_per_sm // shared, machine.threads_per_sm // s.threads))
    at_once = clusters.resident(s.cluster, resident, machine)
    waves = tiles_of(blocks * token_blocks, at_once)
    last = blocks * token_blocks - (waves - 1) * at_once  # clusters of the last wave
    full = (waves - 1) * resident + clusters.fullest(s.cluster, last, resident, machine)  # CTAs, in all waves
    steps = tiles_of(tiles_of(p.k, BLOCK_K), s.cluster * s.split_k)  # of a warp
    row_tiles = steps * s.warps * s.rows  # of a CTA, in all its steps
    x = SIZE * min(p.m, s.block_m) * (p.k if p.ordered else tiles_of(p.k, s.cluster))

    ipc = min(model.sm_ipc, model.warp_ipc * s.warps * full / waves)
    stream = {
        "HBM": (p.read_bytes + p.write_bytes) / (model.hbm_share * fits.read_rate(machine)),
        "L2": full * (row_tiles * (WEIGHTS_BYTES + scale_bytes(p)) + x) * machine.sms / model.l2_bytes_per_s,
        "latency": steps * waves / (s.stages - 0.5) * model.latency_us * 1e-6,
        "instructions": full * row_tiles * _instructions(p, s, model.promote) / (ipc * machine.clock_hz),
    }
    sums = full / waves * s.split_k * s.block_n * s.block_m * FLOAT / model.sum_bytes_per_us
    ends = sums + model.sums_us + model.warp_us * s.warps + (model.cluster_us if s.cluster > 1 else 0.0)
    waiting = (waves - 1) * model.wave_us
    us = model.start_us + 1e6 * joined(model.blend, *stream.values()) + ends + waiting
    longest = {what: 1e6 * each for what, each in stream.items()}
    parts = {"launch": model.start_us, **longest, "sums": ends, "waves": waiting}
    return Bills(us, parts, apart=("launch", "sums", "waves"))


def _instructions(problem: Linear, schedule: Schedule, promote: float) -> float:
    """That a warp issues for a row tile of a step: fragments, their mma, its share of those of x and of the rest."""
    steps, tokens = BLOCK_K / MMA_K, schedule.block_m / MMA_N
    groups = (promote * tokens + 10) * BLOCK_K / problem.group
    return steps * (8 + tokens) + groups + (1.5 * steps * tokens + 45) / schedule.rows


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s = problem, schedule
    ctas = s.cluster * tiles_of(p.n, s.block_n)
    return (
        Launch(
            kernel="gemv_int4",
            entry="gemv_int4",
            problem=p,
            schedule=replace(s, most=0),  # of which code knows nothing
            grid=(clusters.even(ctas, machine) if s.cluster == 1 else ctas, tiles_of(p.m, s.block_m), 1),
            block=(s.threads, 1, 1),
            arguments=(*linear.scaled_arguments(p), pointer(p, "order"), *joined_arguments(p)),
            cluster=(s.cluster, 1, 1),
            shared_bytes=clusters.padded(shared_bytes(p, s), s.most, machine),
            dependent=True,
        ),
    )


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """Every block of tokens reads w, every block of rows x; the CTAs of a cluster store parts of a block's rows."""
    return gemv_int4_counts.theory(problem, schedule)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return gemv_int4_counts.simulate(launch, arrays, machine)
