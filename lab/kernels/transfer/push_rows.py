"""Few CTAs gather pages by a block table and store them into another GPU's pages, then an epoch into its flag."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.cards import fits
from lab.cards.links import link_rate
from lab.kernel import Bills, Solves, require_choice, require_threads
from lab.problems.transfer import INDEX, Transfer
from sim.counts import SECTOR, Counts, sectors
from sim.errors import ScheduleError
from sim.jit import njit
from sim.launch import Array, Launch, Role, Scalar
from sim.machine import Machine
from sim.tiles import SimulatedChip, add_atomically, load_vector, store_vector

LANES = 32
REQUEST = LANES * 16  # bytes of a warp's
# Microseconds from a warp's look at the tables until its stores are issued: 8 and 16 CTAs took that long for what they
# have under way, between two pools of one H200 (commit c806bcd4).
ROUND_TRIP_US = 1.4

SOLVES = Solves(
    Transfer,
    formats=("bf16", "fp16"),
    arch="sm_90",
    row_bytes=16,
    why_multiple="rows are moved 16 bytes at a time",
    facts=("activations",),
)


@dataclass(frozen=True)
class Schedule:
    """How many CTAs push, and how much each has under way."""

    ctas: int
    warps: int
    vectors: int  # 16-byte loads of a lane before its first store

    def __post_init__(self) -> None:
        require_choice(self, "warps", (1, 2, 4, 8, 16))
        require_choice(self, "vectors", (1, 2, 4, 8))
        if self.ctas < 1:
            raise ScheduleError(f"at least one CTA pushes; ctas = {self.ctas}")

    @property
    def threads(self) -> int:
        return LANES * self.warps

    @property
    def bytes_at_once(self) -> int:
        """Of one warp."""
        return self.vectors * REQUEST

    def fits(self, problem: Transfer, machine: Machine) -> None:
        require_threads(1, self.threads, machine)
        if self.ctas > machine.sms:
            raise ScheduleError(f"{self.ctas} CTAs push; the {machine.title} has {machine.sms} SMs")


def candidates(problem: Transfer, machine: Machine) -> Iterator[Schedule]:
    """Few CTAs with much under way each; more of them where prefill can spare the SMs."""
    counts = [ctas for ctas in (16, 8, 32, 4) if ctas <= machine.sms] or [machine.sms]
    yield from (Schedule(ctas, warps, vectors) for ctas in counts for warps, vectors in ((16, 8), (16, 4), (8, 8)))


def bills(problem: Transfer, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """An empty launch, then the longer of the link and of what the warps of so few CTAs have under way at a time."""
    start, moved = fits.launch_us(machine, clock), problem.moved_bytes
    under_way = schedule.ctas * schedule.warps * schedule.bytes_at_once
    beside = {
        "link": 1e6 * moved / link_rate(machine),
        "HBM": 1e6 * moved / fits.read_rate(machine),
        "SMs": ROUND_TRIP_US * moved / under_way,
    }
    return Bills(start + ROUND_TRIP_US + max(beside.values()), {"launch": start, "latency": ROUND_TRIP_US, **beside},
                 apart=("launch", "latency"))  # fmt: skip


def launch(problem: Transfer, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p = problem
    return (
        Launch(
            kernel="push_rows",
            entry="push_rows",
            problem=p,
            schedule=schedule,
            grid=(schedule.ctas, 1, 1),
            block=(schedule.threads, 1, 1),
            arguments=(
                *(Array(name, Role.IN, *operand) for name, operand in p.inputs.items()),
                *(Array(name, Role.OUT, *operand, peer=True) for name, operand in p.outputs.items()),
                Array("arrived", Role.WORKSPACE, (1,), "uint32"),
                Scalar("m", p.m),
                Scalar("n", p.n),
            ),
        ),
    )


def theory(problem: Transfer, schedule: Schedule, machine: Machine) -> Counts:
    p, s, indices = problem, schedule, problem.indices()
    warps = -(-p.row_bytes // s.bytes_at_once)  # that look at the tables for a row
    loads = _row_sectors(p, indices["from_rows"]) + 2 * p.m * warps + 1
    stores = _row_sectors(p, indices["to_rows"])
    return Counts(
        flops=0,
        mma_flops=0,
        exp_count=0,
        global_load_sectors=loads,
        global_store_sectors=stores,
        tma_load_bytes=0,
        l2_to_sm_bytes=SECTOR * loads,
        sm_to_l2_bytes=SECTOR * (stores + s.ctas + 1),  # counts and the flag, which are no ordinary stores
        hbm_read_bytes=p.read_bytes,
        hbm_write_bytes=p.write_bytes,
        peer_read_bytes=0,
        peer_write_bytes=p.write_bytes,
    )


def _row_sectors(p: Transfer, rows: NDArray[np.int32]) -> int:
    """Sectors of the requests for these rows, of which few begin elsewhere in their first sector."""
    starts, times = np.unique(rows.astype(np.int64) * p.row_bytes % SECTOR, return_counts=True)
    pieces = [(at, min(REQUEST, p.row_bytes - at)) for at in range(0, p.row_bytes, REQUEST)]
    each = [sum(sectors(int(start) + at, nbytes) for at, nbytes in pieces) for start in starts]
    return int(np.dot(each, times))


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    marks = chip.marks_of("from_rows", "to_rows", "epoch", "source", "target", "flag", "arrived")
    tables = (arrays[name].astype(np.int64) for name in ("from_rows", "to_rows"))
    chip.on_all_cores(_grid, chip.count, *marks, *tables, p.row_bytes, s.ctas, s.warps, s.vectors)
    if "source" in arrays:
        arrays["target"][arrays["to_rows"]] = arrays["source"][arrays["from_rows"]]
        arrays["flag"][:] = arrays["epoch"]
    return chip.counts()


@njit(cache=True, nogil=True)
def _grid(core, cores, count, from_marks, to_marks, epoch, source, target, flag, arrived, from_rows, to_rows, row_bytes,
          ctas, warps, vectors):  # fmt: skip
    sms, piece = count.shape[0], warps * vectors * REQUEST
    pieces = -(-row_bytes // piece)
    for sm in range(core, sms, cores):
        for cta in range(sm, ctas, sms):
            for item in range(cta, from_rows.size * pieces, ctas):
                row = item // pieces
                for warp in range(warps):
                    first = (item % pieces * warps + warp) * vectors * REQUEST
                    if first >= row_bytes:
                        continue
                    load_vector(count[sm], from_marks, INDEX * row, INDEX)
                    load_vector(count[sm], to_marks, INDEX * row, INDEX)
                    for at in range(first, min(first + vectors * REQUEST, row_bytes), REQUEST):
                        nbytes = min(REQUEST, row_bytes - at)
                        load_vector(count[sm], source, from_rows[row] * row_bytes + at, nbytes)
                        store_vector(count[sm], target, to_rows[row] * row_bytes + at, nbytes)
            add_atomically(count[sm], arrived, 0, INDEX)
    if core == 0:
        load_vector(count[(ctas - 1) % sms], epoch, 0, INDEX)
        add_atomically(count[(ctas - 1) % sms], flag, 0, INDEX)
