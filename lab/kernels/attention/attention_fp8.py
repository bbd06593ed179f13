"""A cache in fp8 multiplied as fp8: values turn in shared memory; bf16 queries and weights are two terms of fp8."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from numpy.typing import NDArray

from lab.kernel import Bills, Solves, require_choice, require_shared
from lab.kernels.attention import prefill, prefill_simulation, prefill_theory
from lab.kernels.common.pointers import pointer
from lab.problems import Attention
from sim.counts import SECTOR, Counts
from sim.errors import ScheduleError
from sim.formats import FORMATS
from sim.launch import Array, Launch, Role
from sim.machine import Machine
from sim.tiles import SimulatedChip, add_atomically

SOLVES = Solves(
    Attention,
    formats=("fp8",),
    arch="sm_90a",
    after="attention_pingpong",
    options={
        "causal": (False,),
        "page": prefill.PAGES,
        "activations": ("fp8",),
        "window": prefill.WINDOWS,
        "lse": (True,),
    },
    facts=prefill.FACTS,
)

SIDE = 128  # rows of a tile of queries, keys of a block, elements of a row: blocks of values are square
LARGEST = 8  # powers of two: weights are at most 256, which fp8 has room for


@dataclass(frozen=True)
class Schedule(prefill.WholeTiles):
    """The ring of a CTA, and in which order tiles come."""

    stages: int  # blocks of keys, and of values, that the ring holds
    section: int  # KV heads whose tiles are walked together, so that their keys and values stay in L2
    slack: int  # powers of two by which weights may exceed those of the largest score before the running maximum moves
    turners: int  # warps that turn values
    overlap: int  # 1: scores of a block are multiplied beside the weighted sum of the one before; 0: after it
    settle: int = 2  # eighths of a block's weights that are made before half of that sum is waited for

    def __post_init__(self) -> None:
        require_choice(self, "turners", (1, 2, 3))
        require_choice(self, "overlap", (0, 1))
        require_choice(self, "settle", tuple(range(1, 8)))
        if self.stages < 2:
            raise ScheduleError(f"a ring has 2 stages or more; stages = {self.stages}")
        prefill.require_order(self.section, self.slack, LARGEST // 2)

    @property
    def block_m(self) -> int:
        """Rows of a tile of queries: tokens, each with all query heads of a KV head."""
        return SIDE

    @property
    def block_n(self) -> int:
        """Keys in a block."""
        return SIDE

    @property
    def headroom(self) -> int:
        """Powers of two by which weights are larger than those relative to the running maximum."""
        return LARGEST - self.slack

    @property
    def threads(self) -> int:
        """A producer and turners, and a consumer for each 64 rows."""
        return prefill.WARPGROUP * (1 + self.block_m // prefill.MMA_M)

    @property
    def ring_bytes(self) -> int:
        """Keys and values in shared memory."""
        return 2 * self.stages * SIDE * SIDE

    @property
    def further_shared_bytes(self) -> int:
        """Barriers, rows and descriptions of tiles, padded to the alignment of a tile, and room to align the whole."""
        scales = 2 * prefill.FLOAT
        inside = prefill.MBARRIER * (2 + 5 * self.stages) + prefill.INDEX * self.stages
        inside += 2 * (prefill.WORK_BYTES + scales)
        return -(-inside // prefill.ALIGNMENT) * prefill.ALIGNMENT + prefill.ALIGNMENT

    def fits(self, problem: Attention, machine: Machine) -> None:
        prefill.require_boxes(problem, self)
        if self.overlap and prefill.terms(problem) > 1:
            raise ScheduleError("two terms of weights leave no registers for an overlap; overlap = 1")
        what = f"{self.stages} stages of {self.block_n} keys and values"
        require_shared(_shared_bytes(problem, self), what, machine)


USUAL = Schedule(stages=4, section=16, slack=4, turners=3, overlap=1)


def candidates(problem: Attention, machine: Machine) -> Iterator[Schedule]:
    cached = replace(USUAL, section=prefill.cached_heads(problem, machine))
    apart = [replace(s, overlap=0) for s in (cached, USUAL)]
    yield from prefill.fitting((cached, USUAL, *apart, replace(USUAL, stages=3)), problem, machine)


def _shared_bytes(problem: Attention, schedule: Schedule) -> int:
    """Queries, rings, and what else a CTA keeps in shared memory."""
    queries = FORMATS[problem.activations].nbytes(schedule.block_m, problem.head_dim)
    return queries + schedule.ring_bytes + schedule.further_shared_bytes


def launch(problem: Attention, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s = problem, schedule
    return (
        Launch(
            kernel="attention_fp8",
            entry="attention_fp8",
            problem=p,
            schedule=s,
            grid=(min(prefill.span_count(p, s), machine.sms), 1, 1),
            block=(s.threads, 1, 1),
            arguments=(
                *prefill.tensor_maps(p, s),
                *prefill.pointers(p),
                *(pointer(p, name) for name in prefill.SCALES),
                Array("counter", Role.WORKSPACE, (1,), "int32"),
                *prefill.capacities(p),
            ),
            shared_bytes=_shared_bytes(p, s),
        ),
    )


def bills(problem: Attention, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    return prefill_theory.bills("attention_fp8", problem, schedule, machine, clock)


def theory(problem: Attention, schedule: Schedule, machine: Machine) -> Counts:
    """As prefill's, and the counter."""
    counts = prefill_theory.theory(problem, schedule)
    return replace(counts, sm_to_l2_bytes=(counts.sm_to_l2_bytes or 0) + SECTOR * _taken(problem, schedule))


def _taken(problem: Attention, schedule: Schedule) -> int:
    """Atomic operations on the counter: for each work one finds the next, or that none is left; the last resets."""
    return prefill.span_count(problem, schedule) + 1


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    chip = SimulatedChip(launch, machine)
    prefill_simulation.simulate(launch, arrays, chip)
    for _ in range(_taken(launch.problem, launch.schedule)):
        add_atomically(chip.count[0], chip.marks("counter"), 0, prefill.INDEX)
    return chip.counts()
