"""Narrow weights, fp8 or int4 groups, widened in registers as operand A of wgmma: batched decode and prefill alike."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import product
from math import sqrt

from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import RANKING_CLOCK, Bills, Solves, require_choice, require_resident, require_shared
from lab.kernels.common import clusters, linear
from lab.kernels.common.norm import joined
from lab.kernels.common.raster import require_group, tiles_of
from lab.kernels.common.rings import deepest
from lab.kernels.gemm import gemm_dequant_simulation, wgmma_model
from lab.kernels.gemm.gemm_dequant_simulation import BLOCK_K, BOX_K, FLOAT, ROWS, SCALE_ROWS, SUM_COLUMNS
from lab.kernels.gemm.wgmma_mainloop import ALIGNMENT, MBARRIER, MMA_M, SWIZZLE
from lab.problems import Linear
from sim.counts import SECTOR, Counts, box_sectors, sectors
from sim.errors import ScheduleError
from sim.launch import Argument, Array, Launch, Role, TensorMap
from sim.machine import Machine

SOLVES = Solves(
    Linear,
    formats=("fp8", "int4_g128", "int4_g64", "int4_g32"),
    arch="sm_90a",
    row_bytes=16,
    why_multiple="TMA needs rows that are multiples of 16 bytes",
    after="gemm_split_k",
    options={"scales": ("tensor", "row"), "offset": ("zero",)},
    facts=("scaled", "row_scales", "zero_points"),
)

HALF = 2  # bytes
MATRIX = 8  # tokens of an 8 x 8 matrix of stmatrix, of which a CTA stores whole ones
WARPGROUP, LANES = 128, 32  # threads of a warpgroup, of a warp
LINE = 128  # bytes of L2
RUN = 256  # elements: the longest edge of a box of TMA
# Of a thread that does not multiply; where fewer are enough for it; where it has nothing to sum.
HELPER_REGISTERS, FEW_HELPER_REGISTERS, LOADER_REGISTERS = 48, 40, 32
# A consumer's thread's beside its accumulators and fragments, at most; where a step is one group.
OVERHEAD, ONE_GROUP_OVERHEAD = 40, 32
MOST_REGISTERS = 232  # of a consumer's thread: 40 of the others and 2 x 232 are the 168 of three warpgroups
MOST_ACCUMULATORS = 128  # of a consumer's thread
HEIGHTS = (16, 32, 64, 96, 128, 192, 256)


@dataclass(frozen=True)
class Schedule:
    """The tile of a cluster, 64 rows of w for each warpgroup of a CTA, and the ring of each CTA."""

    block_m: int  # tokens in a tile
    block_n: int  # rows of w in a tile
    stages: int  # steps of 128 k that the ring holds
    split_k: int  # CTAs of a cluster, that share the k-steps of a tile and then its tokens
    ctas_per_sm: int  # CTAs that an SM holds at once
    group_m: int  # rows of tiles that are walked together, so that they share w in L2

    def __post_init__(self) -> None:
        require_choice(self, "block_m", HEIGHTS)
        require_choice(self, "block_n", (64, 128, 192, 256))
        require_choice(self, "split_k", (1, 2, 4, 8))
        require_choice(self, "ctas_per_sm", (1, 2))
        require_group(self.group_m)
        if self.stages < 2:
            raise ScheduleError(f"a ring has 2 stages or more; stages = {self.stages}")
        if self.block_m % (MATRIX * self.split_k):
            raise ScheduleError(
                f"each of {self.split_k} CTAs stores whole matrices of {MATRIX} tokens; "
                f"block_m = {self.block_m} is no multiple of {MATRIX * self.split_k}"
            )

    @property
    def block_k(self) -> int:
        return BLOCK_K

    @property
    def part(self) -> int:
        """Tokens that a CTA sums and stores."""
        return self.block_m // self.split_k

    def fits(self, problem: Linear, machine: Machine) -> None:
        s, steps = layout(problem, self, machine), tiles_of(problem.k, BLOCK_K)
        if steps < self.split_k:
            raise ScheduleError(f"each of {self.split_k} CTAs takes a k-step or more; k = {problem.k} has {steps}")
        if s.accumulators > MOST_ACCUMULATORS:
            raise ScheduleError(
                f"{self.block_m} tokens are {s.accumulators} accumulators a thread; {MOST_ACCUMULATORS} is the most"
            )
        needed = s.accumulators + s.fragments + (ONE_GROUP_OVERHEAD if s.groups == 1 else OVERHEAD)
        if needed > s.consumer_registers:
            raise ScheduleError(
                f"{s.accumulators} accumulators and {s.fragments} fragments need {needed} registers a thread; "
                f"a consumer has {s.consumer_registers}"
            )
        require_shared(s.shared_bytes, f"{self.stages} stages and {self.split_k - 1} inboxes", machine)
        require_resident(self.ctas_per_sm, s.shared_bytes, s.threads, s.registers, machine)


@dataclass(frozen=True)
class Layout(Schedule):
    """A schedule for weights of one format and a chip's registers, and what follows from them."""

    group: int  # columns of w that share a scale; 0: fp8
    summed: bool  # x over each group, as offsets are added
    sm_registers: int  # of an SM
    thread_registers: int  # the most of a thread

    @cached_property
    def groups(self) -> int:
        """Groups of a row of w in a step."""
        return BLOCK_K // self.group if self.group else 0

    @property
    def runs(self) -> int:
        """Rows of a box that hold 16 packed rows of w in a step; one row would be too long."""
        return ROWS * BLOCK_K // 2 // RUN

    @property
    def helper_threads(self) -> int:
        """Threads that do not multiply, whose registers the consumers get: a warp loads, the others sum x.

        Two warpgroups where there is much to sum and the consumers can spare the registers.
        """
        return WARPGROUP * (2 if self.summed and self.block_m >= 64 and self.block_n <= 128 else 1)

    @cached_property
    def threads(self) -> int:
        """A warpgroup for every 64 rows of w, and the helpers."""
        return WARPGROUP * (self.block_n // MMA_M) + self.helper_threads

    @cached_property
    def registers(self) -> int:
        """A thread's at launch, all that there are."""
        return min(self.thread_registers, self.sm_registers // (self.threads * self.ctas_per_sm)) // 8 * 8

    @property
    def helper_registers(self) -> int:
        """Those that a thread that does not multiply keeps, where its warpgroup can give some away.

        Few where two CTAs share an SM; without a split ptxas spilled some of them. To load takes the least.
        """
        if self.group and not self.summed:
            return LOADER_REGISTERS
        return FEW_HELPER_REGISTERS if self.ctas_per_sm > 1 and self.split_k > 1 else HELPER_REGISTERS

    @cached_property
    def consumer_registers(self) -> int:
        """Those of a thread that multiplies."""
        consumers = self.threads - self.helper_threads
        given = (self.registers * self.threads - self.helper_registers * self.helper_threads) // consumers // 8 * 8
        return max(self.registers, min(MOST_REGISTERS, given))

    @cached_property
    def accumulators(self) -> int:
        """Of a consumer's thread: sums, and for int4 those of a group."""
        return self.block_m // 2 * (2 if self.group else 1)

    @cached_property
    def unit_steps(self) -> int:
        """k16-steps that are widened together: four; two where groups are short or registers few, or one."""
        overhead = ONE_GROUP_OVERHEAD if self.groups == 1 and not self.summed else OVERHEAD
        spare = self.consumer_registers - self.accumulators - overhead
        return 1 if spare < 16 else 4 if spare >= 32 and self.group != 32 else 2

    @property
    def fragments(self) -> int:
        """A thread's registers of widened weights, in two turns."""
        return 2 * 4 * self.unit_steps

    @property
    def x_bytes(self) -> int:
        return self.block_m * BLOCK_K * HALF

    @property
    def w_bytes(self) -> int:
        """Weights of a stage, scales and offsets included."""
        return self.block_n * (BLOCK_K // 2 + 2 * HALF * self.groups if self.group else BLOCK_K)

    @property
    def stage_bytes(self) -> int:
        """What TMA brings."""
        return self.x_bytes + self.w_bytes

    @property
    def stage_span(self) -> int:
        """A stage with the sums of x over each group, aligned."""
        sums = FLOAT * SUM_COLUMNS * self.groups * self.block_m if self.summed else 0
        return tiles_of(self.stage_bytes + sums, ALIGNMENT) * ALIGNMENT

    @property
    def inbox_bytes(self) -> int:
        """What the other CTAs of the cluster send."""
        return (self.split_k - 1) * self.block_n * self.part * FLOAT

    @property
    def shared_bytes(self) -> int:
        barriers = tiles_of((3 * self.stages + 1) * MBARRIER, ALIGNMENT) * ALIGNMENT
        return self.stages * self.stage_span + barriers + self.inbox_bytes + ALIGNMENT


def layout(problem: Linear, schedule: Schedule, machine: Machine) -> Layout:
    s, summed = schedule, problem.group > 0 and not problem.zero_points
    return Layout(
        s.block_m, s.block_n, s.stages, s.split_k, s.ctas_per_sm, s.group_m,
        problem.group, summed, machine.registers_per_sm, machine.registers_per_thread,
    )  # fmt: skip


TRIED = 16  # schedules that are worth trying
STAGES = 12  # more brings nothing: the bytes in flight already cover the latency several times


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """The schedules of least predicted time among all tiles and splits, each with as many stages as fit and are filled.

    Tiles that run together are a patch of y for which x and w together are least.
    """
    p, steps = problem, tiles_of(problem.k, BLOCK_K)
    endless = replace(p, m=1, n=ROWS, k=8 * STAGES * BLOCK_K)
    found = []
    for block_m in [block_m for below, block_m in zip((0, *HEIGHTS), HEIGHTS, strict=False) if below < p.m]:
        for s in _deepest(endless, block_m, machine):
            if s.split_k <= steps:
                row = 2 * p.k * block_m / (_weight_bytes(p) * s.block_n)  # bytes of x over those of w
                patch = round(sqrt(machine.sms * s.ctas_per_sm / s.split_k / row))
                stages, group_m = min(s.stages, max(2, tiles_of(steps, s.split_k))), min(patch, tiles_of(p.m, block_m))
                found.append(replace(s, stages=stages, group_m=max(1, group_m)))
    yield from sorted(found, key=lambda s: bills(p, s, machine, RANKING_CLOCK).us)[:TRIED]


def _ring(block_m: int, block_n: int, split_k: int, ctas: int, stages: int) -> Schedule:
    return Schedule(block_m, block_n, stages, split_k, ctas, 1)


@cache  # it depends on a problem's formats alone, so that a choice for another shape has it
def _deepest(problem: Linear, block_m: int, machine: Machine) -> tuple[Schedule, ...]:
    """The schedules of a height with the longest rings that fit."""
    return tuple(
        schedule
        for block_n, split_k, ctas in product((64, 128, 192, 256), (1, 2, 4, 8), (1, 2))
        for schedule in deepest(partial(_ring, block_m, block_n, split_k, ctas), STAGES, problem, machine)
    )


def _weight_bytes(problem: Linear) -> float:
    """Bytes of a row of w, scales included."""
    return problem.bytes["weights"] / problem.n


class Coefficients(fits.Coefficients, frozen=True):
    """What the estimate is made of, beside what all wgmma GEMMs share."""

    start_us: float  # of a launch
    hbm_share: float  # of the rate of a large read
    crossing: float  # more time of HBM where rows of w do not begin at lines, two of which a box then asks a part of
    crossing_rows: float  # and of L2
    l2_bytes_per_clock: float  # to each SM when all ask
    latency_clocks: float  # from asking for a stage to its bytes, HBM being busy
    reduce_bytes_per_clock: float  # of the inboxes, from the last mma to their sum
    widen_fp8: float  # a warp's instructions for 16 x 16 weights
    widen_int4: float
    promote: float  # a warp's instructions for each token of a tile and group
    group: float  # and for each group
    further: float  # times both for each group of a step beyond the first
    offset: float  # times that for a group with an offset, which the sums of x come with
    warp_ipc: float  # instructions a clock of one warp that multiplies
    sm_ipc: float  # of all that an SM holds
    turns: float  # of the instructions, what no other warpgroup's wgmma hide, if an SM holds one; less by their root
    wave_clocks: float  # of a CTA that follows another on its SM
    step_blend: float  # exponent of the norm that joins what a k-step waits for
    hbm_blend: float  # the same of all k-steps with HBM
    cool_share: float  # as all wgmma GEMMs', of theirs
    hot: float


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """A start, little more than the larger of HBM's time and all k-steps', the epilogue.

    A k-step takes little more than the longest of what the tensor cores, the instructions that widen and promote,
    shared memory, L2, or a turn of the ring need.
    """
    p, s = problem, layout(problem, schedule, machine)
    model = fits.coefficients(Coefficients, "gemm_dequant", machine, clock)
    tiles_m, tiles_n = tiles_of(p.m, s.block_m), tiles_of(p.n, s.block_n)
    tiles, at_once = tiles_m * tiles_n, clusters.resident(s.split_k, s.ctas_per_sm, machine)
    waves, steps = tiles_of(tiles, at_once), tiles_of(tiles_of(p.k, BLOCK_K), s.split_k)
    resident = clusters.fullest(s.split_k, tiles, s.ctas_per_sm, machine)  # CTAs that share an SM
    last = tiles - (waves - 1) * at_once  # clusters of the last wave
    full = (waves - 1) * resident + clusters.fullest(s.split_k, last, s.ctas_per_sm, machine)  # CTAs, in all waves
    consumers = s.block_n // MMA_M

    depth = BLOCK_K + ROWS * s.groups * s.summed  # 8 along k of tf32 take as long as 16 of bf16
    mma = 2 * s.block_m * s.block_n * depth * machine.sms * machine.clock_hz / machine.peak(p.activations)
    widening = (model.widen_int4 if s.group else model.widen_fp8) * BLOCK_K // ROWS
    groups = 1 + model.further * (s.groups - 1) if s.groups else 0
    promoting = (model.promote * s.block_m + model.group) * groups * (model.offset if s.summed else 1.0)
    warps = WARPGROUP // LANES * consumers
    issue = warps * (widening + promoting) / min(model.sm_ipc, model.warp_ipc * warps * resident)
    operands = (consumers * s.x_bytes + 2 * s.w_bytes) / machine.shared_bytes_per_clock
    apart = not s.group and p.k % LINE != 0
    loads = s.stage_bytes / model.l2_bytes_per_clock * (model.crossing_rows if apart else 1.0)
    work = mma + model.turns * issue / sqrt(consumers * resident)  # a warpgroup widens, then multiplies
    turn = (model.latency_clocks / resident + loads) / (s.stages - 1)  # of a ring: one stage is read, the rest fill
    step = {"tensor cores": mma, "instructions": issue, "shared memory": operands, "L2": loads, "latency": turn}

    wgmma = wgmma_model.coefficients(machine, clock)
    epilogue = resident * (s.inbox_bytes / model.reduce_bytes_per_clock + wgmma.round_clocks * s.part / MMA_M)
    clock_hz = fits.sm_clock_hz(machine)
    hbm = (p.read_bytes + p.write_bytes) / (model.hbm_share * fits.read_rate(machine)) * clock_hz
    hbm *= model.crossing if apart else 1.0
    waiting = (waves - 1) * (model.wave_clocks + epilogue) / resident
    stream = full * steps * joined(model.step_blend, work, issue, operands, loads, turn) + waiting
    cool = model.start_us + 1e6 * (joined(model.hbm_blend, stream, hbm) + epilogue) / clock_hz
    clocks = {"HBM": hbm, **{what: full * steps * each for what, each in step.items()}}
    clocks |= {"waves": waiting, "epilogue": epilogue}
    parts = {"launch": model.start_us, **{w: 1e6 * c / clock_hz for w, c in clocks.items()}}
    working = min(1.0, s.split_k * tiles / (full * machine.sms))
    parts["power cap"] = wgmma_model.power_cap(
        parts["tensor cores"], cool, working, wgmma.hot_us, model.cool_share, model.hot
    )
    return Bills(cool + parts["power cap"], parts, apart=("launch", "epilogue", "power cap"))


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s = problem, layout(problem, schedule, machine)
    return (
        Launch(
            kernel="gemm_dequant",
            entry="gemm_dequant",
            problem=p,
            schedule=s,
            grid=(s.split_k * tiles_of(p.m, s.block_m) * tiles_of(p.n, s.block_n), 1, 1),
            block=(s.threads, 1, 1),
            arguments=_arguments(p, s),
            cluster=(s.split_k, 1, 1),
            shared_bytes=s.shared_bytes,
            dependent=True,
        ),
    )


def _arguments(p: Linear, s: Layout) -> tuple[Argument, ...]:
    """Without groups the map of scales is that of w, which is not used."""
    x, w, y, *extents = linear.arguments(p)
    w_map = TensorMap("w_map", "w", (p.n, p.k), (p.k, 1), (s.block_n, BLOCK_K), SWIZZLE)
    pairs_map = TensorMap("pairs_map", "w", (p.n, p.k), (p.k, 1), (s.block_n, BLOCK_K), SWIZZLE)
    if s.group:
        (tiles, columns, nbytes), (_, groups, rows, pair) = (p.inputs[name].shape for name in ("w", "w_scale"))
        boxes, runs, halves = s.block_n // ROWS, columns * nbytes // RUN, rows * pair
        w_map = TensorMap("w_map", "w", (tiles, runs, RUN), (columns * nbytes, RUN, 1), (boxes, s.runs, RUN))
        pairs_map = TensorMap(
            "pairs_map", "w_scale", (tiles, groups, halves), (groups * halves, halves, 1), (boxes, s.groups, halves)
        )
    scales = [a for a in linear.epilogue_arguments(p) if a.name == "w_scale"]
    return (
        TensorMap("x_map", "x", (p.m, p.k), (p.k, 1), (s.block_m, BOX_K), SWIZZLE),
        w_map,
        pairs_map,
        TensorMap("y_map", "y", (p.m, p.n), (p.n, 1), (s.part, MMA_M), SWIZZLE),
        *(x, w, y, *scales, *extents),
    )


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """Each column of tiles loads x, each row of tiles loads w; y is stored in boxes.

    Sums of x, where there are any, are eight rows of w; those of a group eight more along k, offsets their weights.
    """
    p, s = problem, layout(problem, schedule, machine)
    tiles_m, tiles_n, steps = tiles_of(p.m, s.block_m), tiles_of(p.n, s.block_n), tiles_of(p.k, BLOCK_K)

    operands = [Array(name, Role.IN, *p.inputs[name]) for name in p.inputs]
    w = sum(a.nbytes for a in operands if a.name != "x") // SECTOR if s.group else box_sectors(p.n, p.k, BLOCK_K)
    loads = 0  # a warp asks for the scales of eight rows at once, or for that of all
    if p.row_scales:
        loads = tiles_m * s.split_k * (p.n // SCALE_ROWS)
    elif p.scaled:
        loads = tiles_m * s.split_k * tiles_n * (s.block_n // ROWS)
    sums = SUM_COLUMNS * (BLOCK_K + s.groups * s.block_n) if s.summed else 0  # products for each token and step
    return Counts(
        flops=p.flops,
        mma_flops=2 * tiles_m * s.block_m * tiles_n * steps * (s.block_n * BLOCK_K + sums),
        exp_count=0,
        global_load_sectors=loads,
        global_store_sectors=0,
        tma_load_bytes=tiles_m * tiles_n * steps * s.stage_bytes,
        l2_to_sm_bytes=SECTOR * (tiles_n * box_sectors(p.m, HALF * p.k, HALF * BOX_K) + tiles_m * w + loads),
        sm_to_l2_bytes=SECTOR * box_sectors(p.m, HALF * p.n, HALF * MMA_M),
        hbm_read_bytes=SECTOR * sum(sectors(0, a.nbytes) for a in operands),
        hbm_write_bytes=SECTOR * sectors(0, p.write_bytes),
    )


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return gemm_dequant_simulation.simulate(launch, arrays, machine)
