"""Consumers multiply in turn, one's softmax under the other's products; CTAs take tiles from a counter."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from numpy.typing import NDArray

from lab.kernel import Solves, require_choice
from lab.kernels.attention import prefill, prefill_simulation
from lab.problems import Attention
from sim.counts import SECTOR, Counts
from sim.errors import ScheduleError
from sim.launch import Array, Launch, Role
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
REGISTERS = {2: 240, 3: 160}  # of a consumer's thread, by how many there are
OTHER_REGISTERS = 36  # beside scores, weights, values and queries
WORKS = 3  # tiles that shared memory describes
WORK_BYTES = 32
MBARRIER = 8  # bytes
FROM_REGISTERS = (64, 96, 128, 192)  # block_n of a wgmma with queries in registers


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

    def __post_init__(self) -> None:
        prefill.require_blocks(self, (128, 192), tuple(range(64, 193, 16)))
        require_choice(self, "turns", (0, 1))
        require_choice(self, "q_registers", (0, 1))
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
    def shared_rows(self) -> int:
        """Rows of head_dim elements in shared memory: queries, keys, values, results."""
        return 2 * self.block_m + 2 * self.stages * self.block_n

    @property
    def further_shared_bytes(self) -> int:
        """Barriers and descriptions of tiles, padded to the alignment of a tile, and room to align the whole."""
        inside = MBARRIER * (3 + 4 * self.stages) + WORKS * WORK_BYTES
        return -(-inside // prefill.ALIGNMENT) * prefill.ALIGNMENT + prefill.ALIGNMENT

    def fits(self, problem: Attention, machine: Machine) -> None:
        prefill.require_boxes(problem, self.block_m, self.block_n)
        prefill.require_room(problem, self, machine)
        queries = problem.head_dim // 4 if self.q_registers else 0
        needed = self.block_n * 3 // 4 + problem.head_dim // 2 + queries + OTHER_REGISTERS
        if needed > REGISTERS[self.consumers]:
            raise ScheduleError(
                f"scores, weights, sums and queries need about {needed} registers a thread; "
                f"each of {self.consumers} consumers has {REGISTERS[self.consumers]}"
            )


SHAPES = (  # block_m, block_n, turns, lead, q_registers
    (128, 128, 0, 0, 1),
    (128, 128, 1, 2, 0),
    (128, 128, 1, 2, 1),
    (192, 80, 1, 0, 0),
    (128, 160, 1, 0, 0),
    (128, 64, 0, 0, 1),
)
SECTION = 8
SLACK = 8
MOST_STAGES = 4


def candidates(problem: Attention, machine: Machine) -> Iterator[Schedule]:
    """Measured shapes, best first, each with as deep a ring as fits; then other sections."""
    found = []
    for block_m, block_n, turns, lead, q_registers in SHAPES:
        for stages in range(MOST_STAGES, 1, -1):
            schedule = Schedule(block_m, block_n, stages, SECTION, SLACK, turns, lead, q_registers)
            try:
                schedule.fits(problem, machine)
            except ScheduleError:
                continue
            found.append(schedule)
            break
    yield from found
    yield from (replace(schedule, section=section) for schedule in found[:2] for section in (4, 32))


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
                *prefill.capacities(p),
            ),
            shared_bytes=prefill.shared_bytes(p, s),
        ),
    )


def _ctas(problem: Attention, schedule: Schedule, machine: Machine) -> int:
    return min(prefill.tile_count(problem, schedule.block_m), machine.sms)


def _taken(problem: Attention, schedule: Schedule, ctas: int) -> int:
    """Atomic operations on the counter: each tile is taken, each CTA told that there is none left, the last resets."""
    return prefill.tile_count(problem, schedule.block_m) + ctas + 1


def theory(problem: Attention, schedule: Schedule, machine: Machine) -> Counts:
    """As prefill's, and the counter."""
    counts = prefill.theory(problem, schedule.block_m, schedule.block_n)
    taken = SECTOR * _taken(problem, schedule, _ctas(problem, schedule, machine))
    return replace(counts, sm_to_l2_bytes=(counts.sm_to_l2_bytes or 0) + taken)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = Chip(launch, machine)
    prefill_simulation.simulate(launch, arrays, chip, s.section, s.slack)
    for _ in range(_taken(p, s, launch.ctas)):
        add_atomically(chip.count[0], chip.marks("counter"), 0, prefill.INDEX)
    return chip.counts()
