"""Consumers multiply in turn, one's softmax under the other's products; CTAs take tiles from a counter.

Splits of the keys are parts that the last one merges. The device code also knows clusters that share loads of keys
and values; schedules have none yet.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import Bills, Solves, require_choice
from lab.kernels.attention import prefill, prefill_simulation
from lab.problems import Attention
from sim.counts import SECTOR, Counts
from sim.errors import ScheduleError
from sim.launch import Argument, Array, Launch, Role, Scalar
from sim.machine import Machine
from sim.tiles import Chip, add_atomically

SOLVES = Solves(
    Attention,
    formats=("bf16", "fp16"),
    arch="sm_90a",
    after="attention_naive",
    options={
        "head_dim": (64,),
        "causal": (False,),
        "page": prefill.PAGES,
        "window": prefill.WINDOWS,
        "lse": (True,),
    },
    facts=prefill.FACTS,
)

WARPGROUP = 128
REGISTERS = {2: 232, 3: 160}  # of a consumer's thread, by how many there are
OTHER_REGISTERS = 36  # beside scores, weights, values and queries
SPLIT_REGISTERS = 8  # for parts and their merge
OPTION_REGISTERS = 4  # for masks of rows that share a token, or for pages
WARPS = 4  # of a consumer
WORK_BYTES = 40  # of a description of a tile: of two in turn, and of one for each consumer warp
MBARRIER = 8  # bytes
TICKET = 4  # bytes
FROM_REGISTERS = (64, 96, 128, 192)  # block_n of a wgmma with queries in registers
PARTS = ("part_y", "part_log_sums", "arrived")  # of splits: null where there is one
MOST_SPLITS = 64


@dataclass(frozen=True)
class Schedule:
    """The tile of a CTA, its ring, and how its consumers share the tensor cores."""

    block_m: int  # rows of a tile of queries: tokens, each with all query heads of a KV head
    block_n: int  # keys in a block
    stages: int  # blocks of keys, and of values, that the rings hold
    section: int  # KV heads whose tiles are walked together, so that their keys and values stay in L2
    slack: int  # powers of two by which weights may exceed 1 before the running maximum moves
    turns: int  # 1: consumers multiply in turn; 0: as they come
    lead: int  # steps of the weighted sum that are issued after the turn was passed on
    q_registers: int  # 1: queries are held in registers; 0: wgmma reads them from shared memory
    splits: int = 1  # parts of the blocks that a tile sees, each multiplied on its own

    def __post_init__(self) -> None:
        prefill.require_blocks(self, (128, 192), tuple(range(64, 193, 16)))
        require_choice(self, "turns", (0, 1))
        require_choice(self, "q_registers", (0, 1))
        if not 1 <= self.splits <= MOST_SPLITS:
            raise ScheduleError(f"splits are from 1 to {MOST_SPLITS}; splits = {self.splits}")
        if not 1 <= self.section <= 1024:
            raise ScheduleError(f"section is from 1 to 1,024 KV heads; section = {self.section}")
        if not 0 <= self.slack <= 8:
            raise ScheduleError(f"slack is from 0 to 8 powers of two; slack = {self.slack}")
        steps = self.block_n // prefill.MMA_K
        if not 0 <= self.lead < steps:
            raise ScheduleError(f"lead is from 0 to {steps - 1} of the {steps} steps of a block; lead = {self.lead}")
        if self.q_registers:
            require_choice(self, "block_n", FROM_REGISTERS)

    @property
    def consumers(self) -> int:
        return self.block_m // prefill.MMA_M

    @property
    def threads(self) -> int:
        """A producer and the consumers."""
        return WARPGROUP * (1 + self.consumers)

    @property
    def cluster(self) -> int:
        """CTAs that share loads of keys and values."""
        return 1

    @property
    def shared_rows(self) -> int:
        """Rows of head_dim elements in shared memory: queries, keys, values."""
        return self.block_m + 2 * self.stages * self.block_n

    @property
    def further_shared_bytes(self) -> int:
        """Barriers and descriptions of tiles, padded to the alignment of a tile, and room to align the whole."""
        inside = MBARRIER * (5 + 4 * self.stages) + TICKET + WORK_BYTES * (2 + WARPS * self.consumers)
        return -(-inside // prefill.ALIGNMENT) * prefill.ALIGNMENT + prefill.ALIGNMENT

    def fits(self, problem: Attention, machine: Machine) -> None:
        prefill.require_boxes(problem, self.block_m, self.block_n)
        prefill.require_room(problem, self, machine)
        queries = problem.head_dim // 4 if self.q_registers else 0
        options = OPTION_REGISTERS if problem.page or (problem.causal and problem.group > 1) else 0
        options += SPLIT_REGISTERS if self.splits > 1 else 0
        needed = self.block_n * 3 // 4 + problem.head_dim // 2 + queries + options + OTHER_REGISTERS
        if needed > REGISTERS[self.consumers]:
            raise ScheduleError(
                f"scores, weights, sums and queries need about {needed} registers a thread; "
                f"each of {self.consumers} consumers has {REGISTERS[self.consumers]}"
            )


# Measured on the H200 at head_dim 128.
LONG = Schedule(128, 128, 3, section=8, slack=8, turns=0, lead=0, q_registers=1)
SHORT = replace(LONG, stages=2, section=32)
FULL = replace(LONG, block_m=192, block_n=80, q_registers=0)
MEASURED = (
    LONG,
    SHORT,
    FULL,
    replace(LONG, block_n=176, stages=2, q_registers=0),
    replace(FULL, section=32),
    replace(LONG, section=32),
    replace(LONG, turns=1, lead=2),
    replace(LONG, block_n=64, stages=4),
)
SPLIT_BLOCKS = 16  # blocks that a split has at least
LONG_KEYS = 8192  # from so many on causal attention has enough tiles to fill the chip section by section


def candidates(problem: Attention, machine: Machine) -> Iterator[Schedule]:
    """Measured schedules that fit, the best for problems of this kind first."""
    p = problem
    best = FULL if not p.causal else LONG if p.kv_len >= LONG_KEYS else SHORT
    tiles = prefill.tile_count(p, LONG.block_m) if p.group <= LONG.block_m else machine.sms
    blocks = -(-p.kv_len // LONG.block_n)
    fill = min(machine.sms // tiles, blocks // SPLIT_BLOCKS, MOST_SPLITS)  # splits that leave no SM without work
    few = [replace(LONG, q_registers=0, splits=fill)] if fill > 1 else []
    halves = [replace(MEASURED[-1], splits=2)] if blocks > 1 else []
    for schedule in dict.fromkeys((*few, best, *MEASURED, *halves)):
        try:
            schedule.fits(p, machine)
        except ScheduleError:
            continue
        yield schedule


def launch(problem: Attention, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s = problem, schedule
    return (
        Launch(
            kernel="attention_pingpong",
            entry="attention_pingpong",
            problem=p,
            schedule=s,
            grid=(_ctas(p, s, machine), 1, 1),
            block=(s.threads, 1, 1),
            arguments=(
                *prefill.arguments(p, s.block_m, s.block_n),
                Array("counter", Role.WORKSPACE, (1,), "int32"),
                *_parts(p, s),
                *prefill.capacities(p),
            ),
            shared_bytes=prefill.shared_bytes(p, s),
        ),
    )


def _parts(problem: Attention, schedule: Schedule) -> tuple[Argument, ...]:
    """What splits leave for the last of them: rows of y and their log-sums, and how many have."""
    s, tiles = schedule, prefill.tile_count(problem, schedule.block_m)
    if s.splits == 1:
        return tuple(Scalar(name, 0, "int64") for name in PARTS)
    rows = _works(problem, s) * s.block_m
    return (
        Array(PARTS[0], Role.OUT, (rows, problem.head_dim), "fp32"),
        Array(PARTS[1], Role.OUT, (rows,), "fp32"),
        Array(PARTS[2], Role.WORKSPACE, (tiles * s.block_m // prefill.WARP_ROWS,), "int32"),
    )


def _works(problem: Attention, schedule: Schedule) -> int:
    return prefill.tile_count(problem, schedule.block_m) * schedule.splits


def _ctas(problem: Attention, schedule: Schedule, machine: Machine) -> int:
    return min(_works(problem, schedule), machine.sms)


def _taken(problem: Attention, schedule: Schedule, ctas: int) -> int:
    """Atomic operations on the counter: each work is taken, each CTA told that there is none left, the last resets."""
    return _works(problem, schedule) + ctas + 1


class Coefficients(fits.Coefficients, frozen=True):
    """What the estimate is made of."""

    start_us: float  # of a launch, to its first products and from its last ones on
    tensor_share: float  # of the data sheet's rate of the tensor cores, while consumers multiply


def bills(problem: Attention, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """A start, and the longest of HBM, the products of all tiles, and those of the longest tile on its SM."""
    p, s = problem, schedule
    model = fits.coefficients(Coefficients, "attention_pingpong", machine, clock)
    found = [
        prefill.part_of(prefill.tiles(p, sequence, s.block_m, s.block_n), split, s.splits)
        for sequence in p.sequences
        for split in range(s.splits)
    ]
    most = max((int((of.last - of.first).max(initial=0)) for of in found), default=0)
    of_block = 2 * s.block_m * s.block_n * (p.head_dim + p.value_dim)
    rate = model.tensor_share * machine.peak(p.unit)
    stream = {
        "HBM": 1e6 * (p.read_bytes + p.write_bytes) / fits.read_rate(machine),
        "tensor cores": 1e6 * (prefill.theory(p, s.block_m, s.block_n, s.splits).mma_flops or 0) / rate,
        "longest tile": 1e6 * most * of_block * machine.sms / rate,
    }
    return Bills(model.start_us + max(stream.values()), {"launch": model.start_us, **stream})


def theory(problem: Attention, schedule: Schedule, machine: Machine) -> Counts:
    """As prefill's, and the counter."""
    counts = prefill.theory(problem, schedule.block_m, schedule.block_n, schedule.splits)
    taken = SECTOR * _taken(problem, schedule, _ctas(problem, schedule, machine))
    return replace(counts, sm_to_l2_bytes=(counts.sm_to_l2_bytes or 0) + taken)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = Chip(launch, machine)
    prefill_simulation.simulate(launch, arrays, chip, s.section, s.slack)
    for _ in range(_taken(p, s, launch.ctas)):
        add_atomically(chip.count[0], chip.marks("counter"), 0, prefill.INDEX)
    return chip.counts()
