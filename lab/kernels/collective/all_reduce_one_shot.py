"""Two ranks store all they have into each other's memory, each word with its epoch, and add what arrives."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.cards import fits
from lab.cards.links import link_rate
from lab.kernel import Bills, Solves, require_choice, require_threads
from lab.problems.all_reduce import RANKS, AllReduce
from sim.counts import SECTOR, Counts
from sim.errors import ScheduleError
from sim.formats import decode, encode
from sim.jit import njit, prange
from sim.launch import Array, Launch, Role, Scalar
from sim.machine import Machine
from sim.tiles import SimulatedChip, add_atomically, count_fma, load_vector, store_vector

LANES = 32
UNIT = 16  # bytes that a thread has at a time
WORD = 4
SLOTS, PARTS = 2, 2  # of an inbox, of a slot
# Microseconds from a store until the other GPU has seen it, and what is left of a launch around it: what the best
# published one-shot sums of up to 32 KB take in a graph, 2.4 to 2.8 us on an H200 (NVIDIA's aiconfigurator), less an
# empty launch. Not measured by this project.
HOP_US = 1.6

SOLVES = Solves(
    AllReduce,
    formats=("bf16", "fp16"),
    arch="sm_90",
    row_bytes=16,
    why_multiple="rows are sent 16 bytes at a time",
    facts=("activations",),
)


@dataclass(frozen=True)
class Schedule:
    """How many CTAs of each rank send and add."""

    ctas: int
    warps: int

    def __post_init__(self) -> None:
        require_choice(self, "warps", (1, 2, 4, 8, 16))
        if self.ctas < 1:
            raise ScheduleError(f"at least one CTA sends; ctas = {self.ctas}")

    @property
    def threads(self) -> int:
        return LANES * self.warps

    def fits(self, problem: AllReduce, machine: Machine) -> None:
        require_threads(1, self.threads, machine)
        if RANKS * self.ctas > machine.sms:
            raise ScheduleError(
                f"{self.ctas} CTAs of each rank are resident at once; the {machine.title} has {machine.sms} SMs for "
                f"{RANKS} ranks"
            )


def candidates(problem: AllReduce, machine: Machine) -> Iterator[Schedule]:
    """A unit a thread where there are SMs enough; CTAs of few threads begin sooner."""
    units, most = problem.rank_bytes // UNIT, machine.sms // RANKS
    found = (Schedule(max(1, min(most, -(-units // (LANES * warps)))), warps) for warps in (8, 4, 16, 2))
    yield from dict.fromkeys(found)


def bills(problem: AllReduce, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """An empty launch and one way over the link; then its bytes, twice what a rank has, or HBM's."""
    start, sent = fits.launch_us(machine, clock), PARTS * problem.rank_bytes
    beside = {"link": 1e6 * sent / link_rate(machine), "HBM": 1e6 * 2 * problem.rank_bytes / fits.read_rate(machine)}
    parts = {"launch": start, "latency": HOP_US, **beside}
    return Bills(start + HOP_US + max(beside.values()), parts, apart=("launch", "latency"))


def launch(problem: AllReduce, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    """Of both ranks, which one chip plays; `rank_launch` is that of one of two."""
    return (_launch(problem, schedule, ranks=RANKS, first=0),)


def rank_launch(problem: AllReduce, schedule: Schedule, rank: int) -> Launch:
    """One rank's launch on its own GPU: x and y are its own, [m, n], the other's inbox lies in the other's memory."""
    return _launch(problem, schedule, ranks=1, first=rank)


def _launch(p: AllReduce, s: Schedule, ranks: int, first: int) -> Launch:
    units = p.rank_bytes // UNIT
    shape = (SLOTS, PARTS, units, UNIT)
    remote = [ranks == RANKS or r != first for r in range(RANKS)]
    inboxes = (Array(f"inbox{r}", Role.WORKSPACE, shape, "uint8", peer=remote[r]) for r in range(RANKS))
    return Launch(
        kernel="all_reduce_one_shot",
        entry="all_reduce_one_shot",
        problem=p,
        schedule=s,
        grid=(s.ctas, ranks, 1),
        block=(s.threads, 1, 1),
        arguments=(
            Array("x", Role.IN, (ranks, p.m, p.n), p.activations),
            Array("y", Role.OUT, (ranks, p.m, p.n), p.activations),
            *inboxes,
            Array("epochs", Role.WORKSPACE, (RANKS, s.ctas), "uint32"),
            Scalar("units", units),
            Scalar("first_rank", first),
        ),
        cooperative=True,
    )


def theory(problem: AllReduce, schedule: Schedule, machine: Machine) -> Counts:
    """Sums of all requests; polls are none, and what is sent are no ordinary stores."""
    p, s = problem, schedule
    units = p.rank_bytes // UNIT
    first = np.arange(0, units, LANES) * UNIT
    last = np.minimum(first + LANES * UNIT, units * UNIT) - 1

    def requested(base: int) -> int:
        return int(((base + last) // SECTOR - (base + first) // SECTOR + 1).sum())

    own = sum(requested(rank * p.rank_bytes) for rank in range(RANKS))
    slot = SLOTS - 1  # the first epoch is 1
    sent = RANKS * sum(requested((slot * PARTS + part) * units * UNIT) for part in range(PARTS))
    loads, stores = 2 * own + RANKS * s.ctas * s.warps, own + RANKS * s.ctas
    return Counts(
        flops=p.flops,
        mma_flops=0,
        exp_count=0,
        global_load_sectors=loads,
        global_store_sectors=stores,
        tma_load_bytes=0,
        l2_to_sm_bytes=SECTOR * loads,
        sm_to_l2_bytes=SECTOR * (stores + sent),
        hbm_read_bytes=p.read_bytes,
        hbm_write_bytes=p.write_bytes + RANKS * PARTS * p.rank_bytes,
        peer_read_bytes=0,
        peer_write_bytes=RANKS * PARTS * p.rank_bytes,
    )


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    """Both ranks, in the slot of the first epoch."""
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    marks = chip.marks_of("x", "y", "inbox0", "inbox1", "epochs")
    _grid(chip.count, *marks, p.rank_bytes // UNIT, s.ctas, s.warps)
    if "x" in arrays:
        x = decode(arrays["x"], p.activations).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            arrays["y"][...] = encode(np.broadcast_to(x[0] + x[1], x.shape), p.activations)
    return chip.counts()


@njit(cache=True, parallel=True)
def _grid(count, x, y, inbox0, inbox1, epochs, units, ctas, warps):
    sms = count.shape[0]
    for sm in prange(sms):
        for cta in range(sm, RANKS * ctas, sms):
            rank, part = cta // ctas, cta % ctas
            theirs = inbox0 if rank == 1 else inbox1
            for warp in range(warps):
                load_vector(count[sm], epochs, WORD * cta, WORD)
                for i in range((part * warps + warp) * LANES, units, ctas * warps * LANES):
                    nbytes, at = UNIT * min(LANES, units - i), UNIT * (rank * units + i)
                    load_vector(count[sm], x, at, nbytes)
                    for half in range(PARTS):
                        add_atomically(count[sm], theirs, UNIT * (((SLOTS - 1) * PARTS + half) * units + i), nbytes)
                    load_vector(count[sm], x, at, nbytes)
                    count_fma(count[sm], nbytes // 4)
                    store_vector(count[sm], y, at, nbytes)
            store_vector(count[sm], epochs, WORD * cta, WORD)
