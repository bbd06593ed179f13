"""Consumers multiply in turn, one's softmax under the other's products; CTAs take tiles from a counter.

The CTAs of a cluster work on tiles side by side and share the loads of keys and values. Splits of the keys are parts
that the last one merges.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from numpy.typing import NDArray

from lab.kernel import Bills, Solves, require_choice
from lab.kernels.attention import prefill, prefill_simulation, prefill_theory
from lab.kernels.common import clusters
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
    after="attention_warp_specialized",
    options={
        "head_dim": (64,),
        "causal": (False,),
        "page": prefill.PAGES,
        "window": prefill.WINDOWS,
        "lse": (True,),
        "packed": (True,),
    },
    facts=prefill.FACTS,
)

SPLIT_REGISTERS = 8  # for parts and their merge
CLUSTER_REGISTERS = 8  # that the producer has instead
OPTION_REGISTERS = 4  # for masks of rows that share a token, or for pages
FROM_REGISTERS = (64, 96, 128, 192)  # block_n of a wgmma with queries in registers
PARTS = ("part_y", "part_log_sums", "arrived")  # of splits: null where there is one
MOST_SPLITS = 64
MOST_SECTION = 1024


@dataclass(frozen=True)
class Schedule(prefill.RingTiling):
    """The tile of a CTA, its ring, and how its consumers share the tensor cores.

    `turns` 0: they multiply as they come; else in turn, passed on when all is issued (1) or scores are done (2).
    """

    section: int  # KV heads whose tiles are walked together, so that their keys and values stay in L2
    slack: int  # powers of two by which weights may exceed 1 before the running maximum moves
    turns: int  # how consumers share the tensor cores, from 0 to 2
    lead: int  # steps of the weighted sum that are issued after the turn was passed on
    q_registers: int  # 1: queries are held in registers; 0: wgmma reads them from shared memory
    splits: int = 1  # parts of the blocks that a tile sees, each multiplied on its own
    cluster: int = 1  # CTAs with tiles side by side that share loads of keys and values

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "turns", (0, 1, 2))
        require_choice(self, "q_registers", (0, 1))
        require_choice(self, "cluster", (1, 2, 4))
        if not 1 <= self.splits <= MOST_SPLITS:
            raise ScheduleError(f"splits are from 1 to {MOST_SPLITS}; splits = {self.splits}")
        if not 1 <= self.section <= MOST_SECTION:
            raise ScheduleError(f"section is from 1 to {MOST_SECTION:,} KV heads; section = {self.section}")
        if not 0 <= self.slack <= 8:
            raise ScheduleError(f"slack is from 0 to 8 powers of two; slack = {self.slack}")
        steps = self.block_n // prefill.MMA_K
        if not 0 <= self.lead < steps:
            raise ScheduleError(f"lead is from 0 to {steps - 1} of the {steps} steps of a block; lead = {self.lead}")
        if self.q_registers:
            require_choice(self, "block_n", FROM_REGISTERS)

    @property
    def threads(self) -> int:
        """A producer and the consumers."""
        return prefill.WARPGROUP * (1 + self.consumers)

    def registers(self, problem: Attention) -> int:
        queries = problem.head_dim // 4 if self.q_registers else 0
        options = OPTION_REGISTERS if problem.page or (problem.causal and problem.group > 1) else 0
        options += (SPLIT_REGISTERS if self.splits > 1 else 0) + (CLUSTER_REGISTERS if self.cluster > 1 else 0)
        return super().registers(problem) + queries + options


# Measured on the H200 at head_dim 128.
LONG = Schedule(128, 128, 3, section=16, slack=8, turns=0, lead=0, q_registers=1)
SHORT = replace(LONG, section=32)
CHUNK = replace(LONG, turns=2)
FEW = replace(CHUNK, q_registers=0)
FULL = replace(LONG, block_m=192, block_n=80, q_registers=0)
MEASURED = (
    LONG,
    SHORT,
    CHUNK,
    FULL,
    replace(LONG, turns=1, lead=2),
    replace(LONG, block_n=64, stages=4),
)
SPLIT_BLOCKS = 16  # blocks that a split has at least
FEW_TOKENS = 16  # up to which shorter rings are faster
LONG_KEYS = 8192  # from so many on causal attention has enough tiles to fill the chip section by section


def candidates(problem: Attention, machine: Machine) -> Iterator[Schedule]:
    """Measured schedules that fit, the best for problems of this kind first."""
    p = problem
    if not p.causal:
        best = replace(FULL, section=_cached_heads(p, machine))
    elif p.q_len <= FEW_TOKENS:
        best = replace(SHORT, stages=2)
    elif p.q_len < p.kv_len:
        best = CHUNK
    else:
        best = LONG if p.kv_len >= LONG_KEYS else SHORT
    tiles = prefill.tile_count(p, LONG) if p.group <= LONG.block_m else machine.sms
    blocks = -(-p.kv_len // LONG.block_n)
    fill = min(machine.sms // tiles, blocks // SPLIT_BLOCKS, MOST_SPLITS)  # splits that leave no SM without work
    few = [replace(FEW, splits=fill)] if fill > 1 else []
    halves = [replace(MEASURED[-1], q_registers=0, splits=2, cluster=2)] if blocks > 1 else []
    yield from prefill.fitting((*few, best, *MEASURED, *halves), p, machine)


def _cached_heads(problem: Attention, machine: Machine) -> int:
    """KV heads, a power of two of them, whose keys and values fill half of L2; one at least."""
    heads = machine.l2_bytes // 2 // (2 * problem.kv_len * problem.head_dim * prefill.SIZE)
    return min(1 << max(heads, 1).bit_length() - 1, MOST_SECTION)


def launch(problem: Attention, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s = problem, schedule
    return (
        Launch(
            kernel="attention_pingpong",
            entry="attention_pingpong",
            problem=p,
            schedule=s,
            grid=(s.cluster * _clusters(p, s, machine), 1, 1),
            block=(s.threads, 1, 1),
            arguments=(
                *prefill.arguments(p, s),
                Array("counter", Role.WORKSPACE, (1,), "int32"),
                *_parts(p, s),
                *prefill.capacities(p),
            ),
            cluster=(s.cluster, 1, 1),
            shared_bytes=prefill.shared_bytes(p, s),
        ),
    )


def _parts(problem: Attention, schedule: Schedule) -> tuple[Argument, ...]:
    """What splits leave for the last of them: rows of y and their log-sums, and how many have."""
    s, tiles = schedule, prefill.tile_count(problem, schedule)
    if s.splits == 1:
        return tuple(Scalar(name, 0, "int64") for name in PARTS)
    rows = tiles * s.splits * s.block_m
    return (
        Array(PARTS[0], Role.OUT, (rows, problem.head_dim), "fp32"),
        Array(PARTS[1], Role.OUT, (rows,), "fp32"),
        Array(PARTS[2], Role.WORKSPACE, (tiles * s.block_m // prefill.WARP_ROWS,), "int32"),
    )


def _works(problem: Attention, schedule: Schedule) -> int:
    """What the clusters work on: the splits of every span."""
    return prefill.span_count(problem, schedule) * schedule.splits


def _clusters(problem: Attention, schedule: Schedule, machine: Machine) -> int:
    return min(_works(problem, schedule), clusters.at_once(schedule.cluster, 1, machine))


def _taken(problem: Attention, schedule: Schedule) -> int:
    """Atomic operations on the counter: for each work one finds the next, or that none is left; the last resets."""
    return _works(problem, schedule) + 1


def bills(problem: Attention, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    return prefill_theory.bills("attention_pingpong", problem, schedule, machine, clock)


def theory(problem: Attention, schedule: Schedule, machine: Machine) -> Counts:
    """As prefill's, and the counter."""
    counts = prefill_theory.theory(problem, schedule)
    taken = SECTOR * _taken(problem, schedule)
    return replace(counts, sm_to_l2_bytes=(counts.sm_to_l2_bytes or 0) + taken)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = Chip(launch, machine)
    prefill_simulation.simulate(launch, arrays, chip)
    for _ in range(_taken(p, s)):
        add_atomically(chip.count[0], chip.marks("counter"), 0, prefill.INDEX)
    return chip.counts()
