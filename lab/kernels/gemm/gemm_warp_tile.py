"""Compact warp tiles, a ring of transposed stages filled by cp.async, fragments in both banks of the registers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from lab.kernel import RANKING_CLOCK, Bills, Solves, require_choice, require_shared, require_threads
from lab.kernels.gemm import simt_tile
from lab.kernels.gemm.simt_tile import FLOAT, ROW, VECTOR, WarpRequest
from lab.problems import Linear
from sim.counts import Counts
from sim.errors import ScheduleError
from sim.launch import Launch
from sim.machine import Machine

SOLVES = Solves(
    Linear,
    formats=("fp32",),
    arch="sm_80",
    multiple_of={"n": 4},
    why_multiple="rows of y are written in 16-byte vectors",
    after="gemm_vectorized",
)

LANES_M, LANES_N = 4, 8  # lanes of a warp, down and across its tile
LOAD = WarpRequest(4, 8)  # whole sectors; each row of a warp's request meets other banks of the transposed tile
STORE = ROW  # 16 bytes a lane, of four rows that lie 4 apart and so share no sector
MAX_SUMS = 128  # outputs of a thread: as many registers again hold fragments and addresses
OTHER_REGISTERS = 24  # a thread's registers beside its sums and fragments, at least


@dataclass(frozen=True)
class Schedule:
    """The tile of a CTA, the patch of a thread, the ring, the order of tiles."""

    block_m: int  # rows of y
    block_n: int  # columns of y
    block_k: int  # elements of a row that a stage holds
    thread_m: int  # rows that a thread owns
    thread_n: int  # columns that a thread owns
    stages: int  # k-steps that the ring holds
    ctas_per_sm: int  # CTAs that an SM holds at once
    group_m: int  # tile rows walked together, so that x and w are shared in L2

    def __post_init__(self) -> None:
        require_choice(self, "block_m", (32, 64, 128, 256))
        require_choice(self, "block_n", (64, 128, 256))
        require_choice(self, "block_k", (8, 16, 32))
        require_choice(self, "thread_m", (4, 8, 16))
        require_choice(self, "thread_n", (4, 8, 16))
        require_choice(self, "ctas_per_sm", (1, 2, 4))
        if self.stages < 2:
            raise ScheduleError(f"a ring has 2 stages or more; stages = {self.stages}")
        if not 1 <= self.group_m <= 1024:
            raise ScheduleError(f"group_m is from 1 to 1,024 tile rows; group_m = {self.group_m}")
        if self.thread_m * self.thread_n > MAX_SUMS:
            raise ScheduleError(
                f"{self.thread_m} x {self.thread_n} outputs are {self.thread_m * self.thread_n} registers; "
                f"of a thread's 255, {MAX_SUMS} can be sums"
            )
        for name, lanes in (("m", LANES_M), ("n", LANES_N)):
            warp, block = lanes * getattr(self, f"thread_{name}"), getattr(self, f"block_{name}")
            if block % warp:
                raise ScheduleError(f"block_{name} is a multiple of a warp's {warp}; block_{name} = {block}")
        simt_tile.require_warps(self)
        simt_tile.require_rows(self, LOAD)

    @property
    def threads(self) -> int:
        return self.block_m * self.block_n // (self.thread_m * self.thread_n)

    @property
    def shared_bytes(self) -> int:
        return self.stages * self.block_k * (self.block_m + self.block_n + 2 * VECTOR) * FLOAT

    def fits(self, problem: Linear, machine: Machine) -> None:
        require_shared(self.shared_bytes, f"{self.stages} stages", machine)
        require_threads(self.ctas_per_sm, self.threads, machine)
        shared = self.ctas_per_sm * (self.shared_bytes + machine.reserved_shared_bytes)
        if shared > machine.shared_bytes_per_sm:
            raise ScheduleError(
                f"{self.ctas_per_sm} CTAs need {shared:,} B of shared memory; "
                f"an SM of the {machine.title} has {machine.shared_bytes_per_sm:,} B"
            )
        threads = self.ctas_per_sm * self.threads
        each = self.thread_m * self.thread_n + 2 * (self.thread_m + self.thread_n) + OTHER_REGISTERS
        if threads * each > machine.registers_per_sm:
            raise ScheduleError(
                f"{threads} threads with {each} registers or more need {threads * each:,}; "
                f"an SM of the {machine.title} has {machine.registers_per_sm:,}"
            )


# block_m, block_n, block_k, thread_m, thread_n, stages, CTAs an SM. With steps of 8 NVRTC 13.0 spills (13.5 does not).
SHAPES = (
    (256, 128, 32, 16, 8, 3, 1),
    (256, 128, 16, 16, 8, 4, 1),
    (128, 256, 16, 16, 8, 4, 1),
    (128, 128, 32, 16, 8, 3, 2),
    (128, 128, 16, 16, 8, 3, 2),
    (128, 256, 32, 8, 16, 3, 1),
    (64, 64, 16, 4, 8, 3, 4),
    (32, 64, 16, 4, 4, 3, 4),
)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """By predicted time, each with two rasters."""
    schedules = (Schedule(*shape, group_m) for shape in SHAPES for group_m in (8, 4))
    yield from sorted(schedules, key=lambda schedule: bills(problem, schedule, machine, RANKING_CLOCK).us)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    return simt_tile.launch("gemm_warp_tile", problem, schedule, schedule.shared_bytes)


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    return simt_tile.tiled_theory(problem, schedule, LOAD, STORE)


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """As simt_tile.bills; a copy is three instructions, and a row's share four for its address."""
    s = schedule
    copies = (s.block_m + s.block_n) / s.threads * (3 + 4 * LOAD.columns / s.block_k)
    counts = theory(problem, s, machine)
    return simt_tile.bills(problem, s, counts, machine, clock, s.thread_m, s.thread_n, VECTOR, copies)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return simt_tile.simulate_tiles(launch, arrays, machine, LOAD, STORE)
