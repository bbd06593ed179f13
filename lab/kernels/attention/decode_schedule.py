"""How a CTA of attention_split_kv shares the KV heads, queries and tokens that it has, and what that takes of an SM."""

from dataclasses import dataclass

from lab.kernel import require_choice, require_resident, require_shared
from lab.problems import Attention
from sim.errors import ScheduleError
from sim.formats import FORMATS
from sim.machine import Machine

LANES = 32
UNIT = 16  # tokens that a team multiplies at once by mma.sync: its rows
WGMMA_UNIT = 32  # the same by wgmma: its columns; of 64 registers would spill
MMA_N = 8  # columns of an mma
MMA_K = 16
MERGED_ROWS = 4  # of a warp, that meet in shared memory at once
FLOAT = 4  # bytes
MBARRIER = 8  # bytes
ALIGNMENT = 128  # bytes, of what lies in shared memory
PLANNED_AT_ONCE = 128
MOST_WARPS = 16
MOST_STAGES = 32
MOST_CLUSTER = 16
WGMMA_STAGES = 3  # at least: of the unit whose values are multiplied, of the next one's keys, of what is copied
WGMMA_ARCH = "sm_90a"
WARPGROUP = 4, 2  # row groups and query tiles of a team that multiplies by wgmma
OTHER_REGISTERS = 60  # of a thread beside queries and sums


@dataclass(frozen=True)
class Schedule:
    """How a CTA shares the KV heads, queries and tokens that it has, and how sequences are divided over CTAs."""

    warps: int
    stages: int  # units of 16 tokens, keys and values, that the ring of a team holds
    heads: int  # KV heads of a CTA, which read the same tokens at the same time
    row_groups: int  # warps of a team: they share its units, each with other queries
    query_tiles: int  # of eight queries that a warp has
    ctas_per_sm: int  # CTAs that an SM holds at once
    overhead_units: int  # what a sequence costs beside its units, in these; the only one may cost nothing
    least_units: int  # of a CTA, before another one is given work
    cluster: int = 1  # CTAs that share the only sequence, and add up its rows between them; 0: all, without a cluster
    unit: int = UNIT  # tokens that a team multiplies at once; more than 16 by wgmma, of which a team is a warpgroup

    def __post_init__(self) -> None:
        require_choice(self, "unit", (UNIT, WGMMA_UNIT))
        require_choice(self, "heads", (1, 2, 4, 8))
        require_choice(self, "row_groups", (1, 2, 4, 8))
        require_choice(self, "query_tiles", (1, 2))
        if not 1 <= self.warps <= MOST_WARPS or self.warps % (self.heads * self.row_groups):
            raise ScheduleError(
                f"{self.heads} heads of {self.row_groups} warps or several times as many are up to {MOST_WARPS} warps; "
                f"warps = {self.warps}"
            )
        for name, least, most in (
            ("stages", 2, MOST_STAGES),
            ("ctas_per_sm", 1, 4),
            ("overhead_units", int(self.cluster == 1), 1024),
            ("least_units", 1, 1024),
            ("cluster", 0, MOST_CLUSTER),
        ):
            if not least <= getattr(self, name) <= most:
                raise ScheduleError(f"{name} is from {least} to {most:,}; {name} = {getattr(self, name)}")

        if self.unit > UNIT and (self.row_groups, self.query_tiles) != WARPGROUP:
            raise ScheduleError(
                f"units of {self.unit} tokens are for teams of 4 row_groups of 2 query_tiles; "
                f"there are {self.row_groups} of {self.query_tiles}"
            )
        if self.unit > UNIT and self.stages < WGMMA_STAGES:
            raise ScheduleError(f"units of {self.unit} tokens need 3 stages; stages = {self.stages}")

    @property
    def threads(self) -> int:
        return LANES * self.warps

    @property
    def slots(self) -> int:
        """Teams of a KV head: they take its units in turn."""
        return self.warps // (self.heads * self.row_groups)

    @property
    def rows(self) -> int:
        """Queries that share a KV head, at most: of all tokens and of all query heads."""
        return MMA_N * self.query_tiles * self.row_groups

    @property
    def ring_rows(self) -> int:
        """Rows of head_dim elements of all rings."""
        return self.warps // self.row_groups * self.stages * 2 * self.unit

    @property
    def held_rows(self) -> int:
        """Rows of a warp's float32 sums that meet in shared memory at once; all, in the rings, of the only sequence."""
        return MERGED_ROWS if self.cluster == 1 else MMA_N * self.query_tiles

    @property
    def row_pad(self) -> int:
        """Floats between rows of sums, so that what a warp stores at once lies in different banks."""
        return 4 if self.unit == UNIT else 8

    @property
    def inbox_rows(self) -> int:
        """Rows of float32 sums that the cluster sends to a CTA: of each row that it adds up, from every sharer."""
        return self.rows + self.cluster if self.cluster > 1 else 1

    @property
    def spread(self) -> int:
        """Whether rows are added up by all that share the sequence, when all have come, not by who comes last."""
        return int(self.cluster == 0)

    @property
    def planned_at_once(self) -> int:
        """Sequences whose lengths a warp asks for together where it divides them: they are few words for each lane."""
        return PLANNED_AT_ONCE

    @property
    def slack(self) -> int:
        """Powers of two by which the largest weight may grow before sums are scaled anew."""
        return 8

    @property
    def headroom(self) -> int:
        """Powers of two by which weights in fp16 are larger than 1 at first, so that small ones lose nothing."""
        return 6

    @property
    def query_shift(self) -> int:
        """Powers of two by which queries are made smaller where they become fp16, which ends at 65504."""
        return 4

    def fits(self, problem: Attention, machine: Machine) -> None:
        p = problem
        needed = p.q_len * p.group
        if needed > self.rows:
            raise ScheduleError(
                f"{self.row_groups} warps of {self.query_tiles} tiles hold {self.rows} queries of a KV head; "
                f"{p.q_len} tokens have {needed}"
            )
        if self.unit > UNIT:
            self._fits_wgmma(p, machine)
        if p.kv_heads % self.heads:
            raise ScheduleError(f"heads must divide the {p.kv_heads} KV heads; heads = {self.heads}")
        if self.cluster != 1 and p.batch > 1:
            raise ScheduleError(f"CTAs add up rows between them of one sequence; there are {p.batch}")
        if self.cluster > 1 and self.heads > 1:
            raise ScheduleError(f"a cluster has one KV head; heads = {self.heads}")
        if self.cluster > machine.max_cluster:
            raise ScheduleError(f"a cluster is up to {machine.max_cluster} CTAs; cluster = {self.cluster}")
        require_shared(shared_bytes(p, self), f"rings of {self.stages} stages for {self.warps} warps", machine)
        require_resident(self.ctas_per_sm, shared_bytes(p, self), self.threads, registers(p, self), machine)

    def _fits_wgmma(self, problem: Attention, machine: Machine) -> None:
        if machine.arch != WGMMA_ARCH:
            raise ScheduleError(f"units of {self.unit} tokens need wgmma, of {WGMMA_ARCH}; this is {machine.arch}")
        if problem.kv == "fp8":
            raise ScheduleError(f"units of {self.unit} tokens are for caches of 16-bit elements; this one is in fp8")


def shared_bytes(problem: Attention, schedule: Schedule) -> int:
    """The rings; rows of sums, each with two floats, and more against bank conflicts; inbox, mbarrier, flag."""
    p, s = problem, schedule
    row = FLOAT * (p.head_dim + 2)
    rings, sums = s.ring_rows * FORMATS[p.kv].nbytes(1, p.head_dim), s.warps * s.held_rows * (row + FLOAT * s.row_pad)
    room = rings + sums if s.cluster == 1 else max(rings, sums)
    inside = room + s.inbox_rows * row + MBARRIER + 1
    return -(-inside // ALIGNMENT) * ALIGNMENT


def registers(problem: Attention, schedule: Schedule) -> int:
    """Of a thread, so that nothing spills: queries and sums along head_dim, scores of long units, and the rest."""
    if schedule.unit > UNIT:
        return 3 * problem.head_dim // 4 + 5 * schedule.unit // 4 + OTHER_REGISTERS
    return 6 * schedule.query_tiles * problem.head_dim // MMA_K + OTHER_REGISTERS
