"""Clusters share each block of rows along k, and launches overlap: the next one's weights are on their way early."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from lab.kernel import Bills, Solves, require_choice
from lab.kernels.common import clusters
from lab.kernels.gemv import bulk_ring, dot_product
from lab.kernels.gemv.bulk_ring import LINE, MBARRIER, RINGS, Streaming
from lab.kernels.gemv.dot_product import ELEMENT, LANES
from lab.problems import Linear
from sim.counts import Counts, row_sectors
from sim.errors import ScheduleError
from sim.launch import Launch
from sim.machine import Machine

SOLVES = Solves(
    Linear,
    formats=("bf16", "fp16"),
    arch="sm_90a",
    multiple_of={"k": 8},
    why_multiple="bulk copies need rows that are multiples of 16 bytes",
    after="gemv_streamed",
)

FLOAT = 4  # bytes of a sum
SPLITS = (1, 2, 4, 8)  # CTAs of a cluster
ENOUGH_ROWS = 48  # of a cluster: more bring nothing
ENOUGH_COLUMNS = 1024  # of a share: 2 KB a bulk copy


@dataclass(frozen=True)
class Schedule(Streaming):
    """The rows of a cluster, and the ring of each of its CTAs."""

    split_k: int  # CTAs of a cluster, that share the columns of their rows and then the rows

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "split_k", (1, 2, 4, 8))
        if self.block_n % self.split_k:
            raise ScheduleError(
                f"{self.split_k} CTAs own as many rows each; block_n = {self.block_n} is no multiple of {self.split_k}"
            )
        if self.part > LANES * self.warps:
            raise ScheduleError(
                f"a CTA owns {self.part} rows, one a thread; the {self.warps} warps that multiply have "
                f"{LANES * self.warps} threads"
            )

    @property
    def part(self) -> int:
        """Rows of y that a CTA sums and stores."""
        return self.block_n // self.split_k

    @property
    def shared_bytes(self) -> int:
        """The ring, what each CTA of the cluster sends, and a barrier; aligned as the ring is."""
        return -(-(self.ring_bytes + self.block_n * FLOAT + MBARRIER) // 16) * 16

    def fits(self, problem: Linear, machine: Machine) -> None:
        super().fits(problem, machine)
        lines = -(-problem.k // LINE)
        if lines < self.split_k:
            raise ScheduleError(
                f"each of {self.split_k} CTAs takes {LINE} columns or more; k = {problem.k} has {lines} such parts"
            )


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """As few waves of clusters as their threads have rows for; first the least split that gives a cluster enough."""

    def rows(split_k: int, ctas_per_sm: int, waves: int = 1) -> int:
        return -(-problem.n // (waves * clusters.at_once(split_k, ctas_per_sm, machine)))

    def too_little(split_k: int) -> tuple[bool, int]:
        return problem.k < split_k * ENOUGH_COLUMNS, -min(rows(split_k, 2), ENOUGH_ROWS)

    lines = -(-problem.k // LINE)
    for split_k in sorted((split for split in SPLITS if split <= lines), key=too_little):
        for ctas_per_sm, warps, step_bytes, stages in RINGS:
            waves = -(-rows(split_k, ctas_per_sm) // (split_k * LANES * warps))
            block_n = -(-rows(split_k, ctas_per_sm, waves) // split_k) * split_k
            yield Schedule(block_n, warps, step_bytes, stages, split_k)


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    return bulk_ring.bills(problem, schedule, schedule.split_k, machine, clock)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    s = schedule
    ctas = s.split_k * -(-problem.n // s.block_n)
    if s.split_k == 1:
        ctas = clusters.even(ctas, machine)
    how = {"cluster": (s.split_k, 1, 1), "shared_bytes": s.shared_bytes, "dependent": True}
    return dot_product.launch("gemv_split_k", problem, s, ctas, **how)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """As without a split; a warp stores 32 of the rows that a CTA owns at once, or a row alone where none are sent."""
    p, s = problem, schedule
    if s.split_k == 1:
        return bulk_ring.theory(p, s, s.split_k, stores=p.m * p.n)
    blocks = (min(s.part, p.n - first) for first in range(0, p.n, s.part))
    runs = (
        (s.part * at + row, min(LANES, owned - row))
        for at, owned in enumerate(blocks)
        for row in range(0, owned, LANES)
    )
    stores = sum(row_sectors(p.m, ELEMENT * p.n, ELEMENT * row, ELEMENT * rows) for row, rows in runs)
    return bulk_ring.theory(p, s, s.split_k, stores)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    s = launch.schedule
    stored = LANES if s.split_k > 1 else 1
    return bulk_ring.simulate(launch, arrays, machine, s.split_k, owned=s.part, stored=stored)
