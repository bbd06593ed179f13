"""CTAs that take one tile of queries after another: what schedules, launches and counts of such kernels share.

The CTAs of a cluster work on tiles side by side and share the loads of keys and values. Splits of the keys are parts
that the last one merges.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from lab.kernel import require_choice
from lab.kernels.attention import prefill, prefill_simulation, prefill_theory
from lab.kernels.common import clusters
from lab.problems import Attention
from sim.counts import SECTOR, Counts
from sim.errors import ScheduleError
from sim.launch import Argument, Array, Launch, Role, Scalar
from sim.machine import Machine
from sim.tiles import Chip, add_atomically

OPTIONS: Mapping[str, tuple[Any, ...] | range] = {
    "head_dim": (64,),
    "causal": (False,),
    "page": prefill.PAGES,
    "window": prefill.WINDOWS,
    "lse": (True,),
}
SPLIT_REGISTERS = 8  # for parts and their merge
CLUSTER_REGISTERS = 8  # that the producer has instead
OPTION_REGISTERS = 4  # for masks of rows that share a token, or for pages
PARTS = ("part_y", "part_log_sums", "arrived")  # of splits: null where there is one
MOST_SPLITS = 64
MOST_SECTION = 1024
SPLIT_KEYS = 2048  # that a split has at least


@dataclass(frozen=True)
class PersistentTiling(prefill.RingTiling):
    """The tile of a CTA, its ring, and in which order tiles are taken."""

    section: int  # KV heads whose tiles are walked together, so that their keys and values stay in L2
    slack: int  # powers of two by which weights may exceed 1 before the running maximum moves
    splits: int  # parts of the blocks that a tile sees, each multiplied on its own
    cluster: int  # CTAs with tiles side by side that share loads of keys and values

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "cluster", (1, 2, 4))
        if not 1 <= self.splits <= MOST_SPLITS:
            raise ScheduleError(f"splits are from 1 to {MOST_SPLITS}; splits = {self.splits}")
        if not 1 <= self.section <= MOST_SECTION:
            raise ScheduleError(f"section is from 1 to {MOST_SECTION:,} KV heads; section = {self.section}")
        if not 0 <= self.slack <= 8:
            raise ScheduleError(f"slack is from 0 to 8 powers of two; slack = {self.slack}")

    @property
    def threads(self) -> int:
        """A producer and the consumers."""
        return prefill.WARPGROUP * (1 + self.consumers)

    def registers(self, problem: Attention) -> int:
        options = OPTION_REGISTERS if problem.page or (problem.causal and problem.group > 1) else 0
        options += (SPLIT_REGISTERS if self.splits > 1 else 0) + (CLUSTER_REGISTERS if self.cluster > 1 else 0)
        return super().registers(problem) + options


def filling(problem: Attention, block_m: int, machine: Machine) -> int:
    """Splits that leave no SM without work, as far as each has keys enough; 1 where tiles alone do."""
    p = problem
    if p.group > block_m:
        return 1
    tiles = -(-p.q_len // prefill.tokens_of(p, block_m)) * p.batch * p.kv_heads
    return max(1, min(machine.sms // tiles, p.kv_len // SPLIT_KEYS, MOST_SPLITS))


def cached_heads(problem: Attention, machine: Machine) -> int:
    """KV heads, a power of two of them, whose keys and values fill half of L2; one at least."""
    heads = machine.l2_bytes // 2 // (2 * problem.kv_len * problem.head_dim * prefill.SIZE)
    return int(min(1 << max(heads, 1).bit_length() - 1, MOST_SECTION))


def launch(kernel: str, problem: Attention, schedule: PersistentTiling, machine: Machine) -> tuple[Launch, ...]:
    """As many clusters as run at once, or as there are works of theirs."""
    p, s = problem, schedule
    return (
        Launch(
            kernel=kernel,
            entry=kernel,
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


def _parts(problem: Attention, schedule: PersistentTiling) -> tuple[Argument, ...]:
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


def _works(problem: Attention, schedule: PersistentTiling) -> int:
    """What the clusters work on: the splits of every span."""
    return prefill.span_count(problem, schedule) * schedule.splits


def _clusters(problem: Attention, schedule: PersistentTiling, machine: Machine) -> int:
    return min(_works(problem, schedule), clusters.at_once(schedule.cluster, 1, machine))


def _taken(problem: Attention, schedule: PersistentTiling) -> int:
    """Atomic operations on the counter: for each work one finds the next, or that none is left; the last resets."""
    return _works(problem, schedule) + 1


def theory(problem: Attention, schedule: PersistentTiling) -> Counts:
    """As prefill's, and the counter."""
    counts = prefill_theory.theory(problem, schedule)
    taken = SECTOR * _taken(problem, schedule)
    return replace(counts, sm_to_l2_bytes=(counts.sm_to_l2_bytes or 0) + taken)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    """A launch of such a kernel on the simulated chip."""
    chip = Chip(launch, machine)
    prefill_simulation.simulate(launch, arrays, chip)
    for _ in range(_taken(launch.problem, launch.schedule)):
        add_atomically(chip.count[0], chip.marks("counter"), 0, prefill.INDEX)
    return chip.counts()
