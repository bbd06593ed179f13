"""Consumers multiply in turn, one's softmax under the other's products; CTAs take tiles from a counter.

The CTAs of a cluster work on tiles side by side and share the loads of keys and values. Tiles beyond whole rounds of
the SMs may be split along the keys, into parts that the last one merges.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from numpy.typing import NDArray

from lab.kernel import Bills, Solves, require_choice
from lab.kernels.attention import prefill, prefill_simulation, prefill_theory
from lab.kernels.common import clusters
from lab.kernels.common.pointers import null
from lab.problems import Attention
from sim.counts import SECTOR, Counts
from sim.errors import ScheduleError
from sim.launch import Argument, Array, Launch, Role
from sim.machine import Machine
from sim.tiles import SimulatedChip, add_atomically

SOLVES = Solves(
    Attention,
    formats=("bf16", "fp16"),
    arch="sm_90a",
    after="attention_warp_specialized",
    options={
        "head_dim": (64, 256),
        "causal": (False,),
        "page": prefill.PAGES,
        "window": prefill.WINDOWS,
        "lse": (True,),
        "packed": (True,),
    },
    facts=prefill.FACTS,
)

APART_REGISTERS = 8  # less where the tiles of a consumer do not overlap, as where any are split
CLUSTER_REGISTERS = 8  # that the producer has instead
OPTION_REGISTERS = 4  # for rows that share a token or for pages, for a window, and to divide by the heads that share
WIDE_REGISTERS = 6  # for rows of more than 128 elements
FROM_REGISTERS = (64, 96, 128, 192)  # block_n of a wgmma with queries in registers
PARTS = ("part_y", "part_log_sums", "arrived")  # of splits: null where there is one
MOST_SPLITS = 64
MOST_SLACK = 8  # powers of two


@dataclass(frozen=True)
class Schedule(prefill.RingTiling):
    """The tile of a CTA, its ring, and how its consumers share the tensor cores.

    `turns` 0: they multiply as they come; else in turn, passed on when all is issued (1) or scores are done (2).
    """

    section: int  # KV heads whose tiles are walked together, so that their keys and values stay in L2
    slack: int  # powers of two by which weights may exceed 1 before the running maximum moves
    turns: int  # how consumers share the tensor cores, from 0 to 2
    settle: int  # eighths of a block's weights that are made before the last weighted sum is waited for
    q_registers: int  # 1: queries are held in registers; 0: wgmma reads them from shared memory
    splits: int = (
        1  # parts of the blocks that a tile sees, of tiles that leave SMs without work when all others are done
    )
    cluster: int = 1  # CTAs with tiles side by side that share loads of keys and values

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "turns", (0, 1, 2))
        require_choice(self, "q_registers", (0, 1))
        require_choice(self, "cluster", (1, 2, 4))
        if not 1 <= self.splits <= MOST_SPLITS:
            raise ScheduleError(f"splits are from 1 to {MOST_SPLITS}; splits = {self.splits}")
        prefill.require_order(self.section, self.slack, MOST_SLACK)
        if not 1 <= self.settle <= 8:
            raise ScheduleError(f"settle is from 1 to 8 eighths of a block's weights; settle = {self.settle}")
        if self.q_registers:
            require_choice(self, "block_n", FROM_REGISTERS)

    @property
    def threads(self) -> int:
        """A producer and the consumers."""
        return prefill.WARPGROUP * (1 + self.consumers)

    def registers(self, problem: Attention) -> int:
        p = problem
        queries = p.head_dim // 4 if self.q_registers else 0
        options = (p.page > 0 or p.group > 1) + (p.window > 0) + (p.group & p.group - 1 > 0)
        others = (CLUSTER_REGISTERS if self.cluster > 1 else 0) - (APART_REGISTERS if self.splits > 1 else 0)
        others += WIDE_REGISTERS if p.head_dim > 128 else 0
        return super().registers(p) + queries + OPTION_REGISTERS * options + others


# Measured on the H200 at head_dim 128: two consumers settle early, three late.
LONG = Schedule(128, 128, 3, section=16, slack=8, turns=2, settle=3, q_registers=1)
SHORT = replace(LONG, section=32)
FEW = replace(LONG, q_registers=0)
FULL = replace(LONG, block_m=192, block_n=80, turns=0, settle=7, q_registers=0)
WIDE = replace(FEW, block_n=80, stages=2)  # rows of 256 elements fit in no other way
MEASURED = (
    LONG,
    SHORT,
    FULL,
    WIDE,
    replace(WIDE, block_n=64),
    replace(LONG, block_n=64, stages=4),
)
SPLIT_BLOCKS = 8  # blocks that a split has at least
PART_BLOCKS, MERGE_BLOCKS = 1, 4  # blocks that could be multiplied while a part starts and is stored, while all merge
FEW_TOKENS = 16  # up to which shorter rings are faster
LONG_KEYS = 4096  # from so many on causal attention has enough tiles to fill the chip section by section
LONGEST_KEYS = 16384  # from so many on what three consumers hide outweighs what their taller tiles mask


def candidates(problem: Attention, machine: Machine) -> Iterator[Schedule]:
    """Measured schedules that fit, the best for problems of this kind first."""
    p = problem
    full = replace(FULL, section=prefill.cached_heads(p, machine))
    if not p.causal:
        best = full
    elif p.q_len <= FEW_TOKENS:
        best = replace(SHORT, stages=2)
    elif p.q_len < p.kv_len:
        best = LONG
    else:
        best = replace(FULL, section=32) if p.kv_len >= LONGEST_KEYS else LONG if p.kv_len >= LONG_KEYS else SHORT
    alike = not p.causal or FEW_TOKENS < p.q_len < p.kv_len  # so that tiles take about equally long
    split = [replace(s, splits=n) for s in (full, FEW) if alike and (n := _splits(p, s, machine)) > 1]
    few = [s for s in split if s.block_m == FEW.block_m and prefill.span_count(p, s) <= machine.sms // 2]
    halves = [replace(MEASURED[-1], q_registers=0, splits=2, cluster=2)] if p.kv_len > LONG.block_n else []
    yield from prefill.fitting((*few, best, *split, *MEASURED, *halves), p, machine)


def _splits(problem: Attention, schedule: Schedule, machine: Machine) -> int:
    """Parts of the tiles beyond whole rounds of the SMs' that let all SMs end soonest; 1 where whole ones do."""
    p, s = problem, schedule
    if p.group > s.block_m:
        return 1
    blocks, at_once = -(-p.kv_len // s.block_n), clusters.at_once(s.cluster, 1, machine)
    left = prefill.span_count(p, s) % at_once

    def rounds(splits: int) -> int:
        """Blocks that are multiplied one after another after the whole rounds."""
        merge = MERGE_BLOCKS if splits > 1 else 0
        return -(-left * splits // at_once) * (-(-blocks // splits) + PART_BLOCKS) + merge

    return min(range(1, min(blocks // SPLIT_BLOCKS, MOST_SPLITS) + 1), key=rounds, default=1)


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
                *_parts(p, s, machine),
                *prefill.capacities(p),
            ),
            cluster=(s.cluster, 1, 1),
            shared_bytes=prefill.shared_bytes(p, s),
        ),
    )


def _parts(problem: Attention, schedule: Schedule, machine: Machine) -> tuple[Argument, ...]:
    """What splits leave for the last of them: rows of y and their log-sums, and how many have."""
    s = schedule
    tiles = prefill.tile_count(problem, s) - s.cluster * _whole(problem, s, machine)
    if not tiles:
        return tuple(null(name) for name in PARTS)
    rows = tiles * s.splits * s.block_m
    return (
        Array(PARTS[0], Role.OUT, (rows, problem.head_dim), "fp32"),
        Array(PARTS[1], Role.OUT, (rows,), "fp32"),
        Array(PARTS[2], Role.WORKSPACE, (tiles * s.block_m // prefill.WARP_ROWS,), "int32"),
    )


def _clusters(problem: Attention, schedule: Schedule, machine: Machine) -> int:
    """Of the grid: as many as run at once, where there is work for so many."""
    splits = prefill.work_count(problem, schedule, 0)
    return min(splits, clusters.at_once(schedule.cluster, 1, machine))


def _whole(problem: Attention, schedule: Schedule, machine: Machine) -> int:
    return prefill.whole_spans(problem, schedule, _clusters(problem, schedule, machine))


def _taken(problem: Attention, schedule: Schedule, machine: Machine) -> int:
    """Atomic operations on the counter: for each work one finds the next, or that none is left; the last resets."""
    return prefill.work_count(problem, schedule, _whole(problem, schedule, machine)) + 1


def bills(problem: Attention, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    whole = _whole(problem, schedule, machine)
    return prefill_theory.bills("attention_pingpong", problem, schedule, machine, clock, whole)


def theory(problem: Attention, schedule: Schedule, machine: Machine) -> Counts:
    """As prefill's, and the counter."""
    counts = prefill_theory.theory(problem, schedule, _whole(problem, schedule, machine))
    taken = SECTOR * _taken(problem, schedule, machine)
    return replace(counts, sm_to_l2_bytes=(counts.sm_to_l2_bytes or 0) + taken)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    prefill_simulation.simulate(launch, arrays, chip)
    for _ in range(_taken(p, s, machine)):
        add_atomically(chip.count[0], chip.marks("counter"), 0, prefill.INDEX)
    return chip.counts()
