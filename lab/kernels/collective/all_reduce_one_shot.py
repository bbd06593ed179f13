"""Two ranks store all they have into each other's memory, each word with its epoch, and add what arrives."""

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

NAME, PARTS = "all_reduce_one_shot", 2  # of a slot: half of a unit's words each, with their epochs

SOLVES = Solves(
    AllReduce,
    formats=("bf16", "fp16"),
    arch="sm_90",
    row_bytes=16,
    why_multiple="rows are sent 16 bytes at a time",
    facts=("activations",),
)

__all__ = ["SOLVES", "Schedule", "bills", "candidates", "launch", "rank_launch", "simulate", "theory"]


def bills(problem: AllReduce, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    return two_ranks.bills(problem, machine, clock, PARTS * problem.rank_bytes, hops=1)


def launch(problem: AllReduce, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    """Of both ranks, which one chip plays; `rank_launch` is that of one of two."""
    return two_ranks.launch(NAME, problem, schedule, PARTS, flags=False)


def rank_launch(problem: AllReduce, schedule: Schedule, rank: int) -> Launch:
    """One rank's launch on its own GPU."""
    return two_ranks.launch(NAME, problem, schedule, PARTS, flags=False, ranks=1, first=rank)[0]


def theory(problem: AllReduce, schedule: Schedule, machine: Machine) -> Counts:
    """Sums of all requests; polls are none, and what is sent are no ordinary stores."""
    p, s = problem, schedule
    own = sum(requested(p, rank * p.rank_bytes) for rank in range(RANKS))
    sent = RANKS * sum(requested(p, (FIRST_SLOT * PARTS + part) * p.rank_bytes) for part in range(PARTS))
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
    chip.on_all_cores(_grid, chip.count, *marks, p.rank_bytes // UNIT, s.ctas, s.warps)
    two_ranks.add(p, arrays)
    return chip.counts()


@njit(cache=True, nogil=True)
def _grid(core, cores, count, x, y, inbox0, inbox1, epochs, units, ctas, warps):
    sms = count.shape[0]
    for sm in range(core, sms, cores):
        for cta in range(sm, RANKS * ctas, sms):
            rank, part = cta // ctas, cta % ctas
            theirs = inbox0 if rank == 1 else inbox1
            for warp in range(warps):
                load_vector(count[sm], epochs, WORD * cta, WORD)
                for i in range((part * warps + warp) * LANES, units, ctas * warps * LANES):
                    nbytes, at = UNIT * min(LANES, units - i), UNIT * (rank * units + i)
                    load_vector(count[sm], x, at, nbytes)
                    for half in range(PARTS):
                        add_atomically(count[sm], theirs, UNIT * ((FIRST_SLOT * PARTS + half) * units + i), nbytes)
                    load_vector(count[sm], x, at, nbytes)
                    count_fma(count[sm], nbytes // 4)
                    store_vector(count[sm], y, at, nbytes)
            store_vector(count[sm], epochs, WORD * cta, WORD)
