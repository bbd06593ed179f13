"""A flag for all that a CTA sends, in place of an epoch beside each word: half the bytes, for two ways more."""

from collections.abc import Mapping

from numpy.typing import NDArray

from lab.kernel import Bills, Solves
from lab.kernels.collective import two_ranks
from lab.kernels.collective.two_ranks import FIRST_SLOT, LANES, UNIT, WORD, Schedule, candidates, requested
from lab.problems.all_reduce import RANKS, AllReduce
from sim.counts import SECTOR, Counts
from sim.jit import njit
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import SimulatedChip, add_atomically, count_fma, load_vector, store_vector

NAME, PARTS = "all_reduce_flagged", 1
HOPS = 2  # the fence waits until the words are there, and then the flag has to come

SOLVES = Solves(
    AllReduce,
    formats=("bf16", "fp16"),
    arch="sm_90",
    row_bytes=16,
    why_multiple="rows are sent 16 bytes at a time",
    facts=("activations",),
    after="all_reduce_one_shot",
)

__all__ = ["SOLVES", "Schedule", "bills", "candidates", "launch", "rank_launch", "simulate", "theory"]


def bills(problem: AllReduce, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    return two_ranks.bills(problem, machine, clock, problem.rank_bytes, HOPS)


def launch(problem: AllReduce, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    """Of both ranks, which one chip plays; `rank_launch` is that of one of two."""
    return two_ranks.launch(NAME, problem, schedule, PARTS, flags=True)


def rank_launch(problem: AllReduce, schedule: Schedule, rank: int) -> Launch:
    """One rank's launch on its own GPU."""
    return two_ranks.launch(NAME, problem, schedule, PARTS, flags=True, ranks=1, first=rank)[0]


def theory(problem: AllReduce, schedule: Schedule, machine: Machine) -> Counts:
    """Sums of all requests; polls are none, and a flag is no ordinary store.

    Where one chip plays both ranks an inbox is the other's and its reader's, so peer reads are not counted.
    """
    p, s = problem, schedule
    own = sum(requested(p, rank * p.rank_bytes) for rank in range(RANKS))
    inbox, ctas = RANKS * requested(p, FIRST_SLOT * p.rank_bytes), RANKS * s.ctas
    loads, stores = 2 * own + inbox + ctas * s.warps, own + inbox + ctas
    return Counts(
        flops=p.flops,
        mma_flops=0,
        exp_count=0,
        global_load_sectors=loads,
        global_store_sectors=stores,
        tma_load_bytes=0,
        l2_to_sm_bytes=SECTOR * loads,
        sm_to_l2_bytes=SECTOR * (stores + ctas),
        hbm_read_bytes=p.read_bytes + RANKS * p.rank_bytes,
        hbm_write_bytes=p.write_bytes + RANKS * p.rank_bytes,
        peer_write_bytes=RANKS * p.rank_bytes,
    )


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    """Both ranks, in the slot of the first epoch."""
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    marks = chip.marks_of("x", "y", "inbox0", "inbox1", "flags0", "flags1", "epochs")
    chip.on_all_cores(_grid, chip.count, *marks, p.rank_bytes // UNIT, s.ctas, s.warps)
    two_ranks.add(p, arrays)
    return chip.counts()


@njit(cache=True, nogil=True)
def _grid(core, cores, count, x, y, inbox0, inbox1, flags0, flags1, epochs, units, ctas, warps):
    sms = count.shape[0]
    for sm in range(core, sms, cores):
        for cta in range(sm, RANKS * ctas, sms):
            rank, part = cta // ctas, cta % ctas
            mine, theirs = (inbox1, inbox0) if rank == 1 else (inbox0, inbox1)
            for warp in range(warps):
                load_vector(count[sm], epochs, WORD * cta, WORD)
                for i in range((part * warps + warp) * LANES, units, ctas * warps * LANES):
                    nbytes, at, slot = UNIT * min(LANES, units - i), UNIT * (rank * units + i), FIRST_SLOT * units
                    load_vector(count[sm], x, at, nbytes)
                    store_vector(count[sm], theirs, UNIT * (slot + i), nbytes)
                    load_vector(count[sm], x, at, nbytes)
                    load_vector(count[sm], mine, UNIT * (slot + i), nbytes)
                    count_fma(count[sm], nbytes // 4)
                    store_vector(count[sm], y, at, nbytes)
            add_atomically(count[sm], flags0 if rank == 1 else flags1, WORD * part, WORD)
            store_vector(count[sm], epochs, WORD * cta, WORD)
