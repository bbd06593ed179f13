"""What the all-reduces of two ranks share: schedules, the launch of one rank or of both, requests, latency."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.cards import fits
from lab.cards.links import link_rate
from lab.kernel import Bills, require_choice, require_threads
from lab.problems.all_reduce import RANKS, AllReduce
from sim.counts import SECTOR
from sim.errors import ScheduleError
from sim.formats import decode, encode
from sim.launch import Array, Launch, Role, Scalar
from sim.machine import Machine

LANES = 32
UNIT = 16  # bytes that a thread has at a time
WORD = 4
SLOTS = 2  # of an inbox, taken in turn
FIRST_SLOT = 1  # of the first epoch, which is 1
# Microseconds from a store until the other GPU has seen it, and what is left of a launch around it: what the best
# published one-shot sums of up to 32 KB take in a graph, 2.4 to 2.8 us on an H200 (NVIDIA's aiconfigurator), less an
# empty launch. Not measured by this project.
HOP_US = 1.6


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


def bills(problem: AllReduce, machine: Machine, clock: str, sent: int, hops: float) -> Bills:
    """An empty launch and `hops` over the link; then `sent` bytes of each rank, or what its HBM moves of them."""
    start, own = fits.launch_us(machine, clock), problem.rank_bytes
    beside = {"link": 1e6 * sent / link_rate(machine), "HBM": 1e6 * (2 * own + 2 * sent) / fits.read_rate(machine)}
    parts = {"launch": start, "latency": hops * HOP_US, **beside}
    return Bills(start + hops * HOP_US + max(beside.values()), parts, apart=("launch", "latency"))


def launch(
    name: str, p: AllReduce, s: Schedule, parts: int, flags: bool, ranks: int = RANKS, first: int = 0
) -> tuple[Launch, ...]:
    """Both ranks, which one chip plays, or one on its own GPU: x and y are its own, the other's arrays the other's.

    An inbox has `parts` times what a rank has in each slot; with `flags` it has one for each CTA beside it.
    """
    units = p.rank_bytes // UNIT
    remote = [ranks == RANKS or r != first for r in range(RANKS)]
    inboxes = (Array(f"inbox{r}", Role.WORKSPACE, (SLOTS, parts, units, UNIT), "uint8", peer=remote[r]) for r in (0, 1))
    of_ctas = (Array(f"flags{r}", Role.WORKSPACE, (s.ctas,), "uint32", peer=remote[r]) for r in (0, 1) if flags)
    return (
        Launch(
            kernel=name,
            entry=name,
            problem=p,
            schedule=s,
            grid=(s.ctas, ranks, 1),
            block=(s.threads, 1, 1),
            arguments=(
                Array("x", Role.IN, (ranks, p.m, p.n), p.activations),
                Array("y", Role.OUT, (ranks, p.m, p.n), p.activations),
                *inboxes,
                *of_ctas,
                Array("epochs", Role.WORKSPACE, (RANKS, s.ctas), "uint32"),
                Scalar("units", units),
                Scalar("first_rank", first),
            ),
            cooperative=True,
        ),
    )


def add(problem: AllReduce, arrays: Mapping[str, NDArray]) -> None:
    """Write the sum to both ranks' y as the kernels make it, in float32; nothing without arrays."""
    if "x" in arrays:
        x = decode(arrays["x"], problem.activations).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            arrays["y"][...] = encode(np.broadcast_to(x[0] + x[1], x.shape), problem.activations)


def requested(p: AllReduce, base: int) -> int:
    """Sectors of all warps' requests for what one rank has, from byte `base` of an array on."""
    nbytes = p.rank_bytes
    first = np.arange(0, nbytes, LANES * UNIT)
    last = np.minimum(first + LANES * UNIT, nbytes) - 1
    return int(((base + last) // SECTOR - (base + first) // SECTOR + 1).sum())
