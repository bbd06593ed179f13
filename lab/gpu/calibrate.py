"""Calibration of this process's GPU, step by step: launches, reads by size and clock, L2, clusters, a peer, clocks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from msgspec import structs

from lab.cards import CLOCKS, Calibration, Measured, Read, Run
from lab.gpu import ceilings, probes
from lab.gpu.device import card, conditions
from lab.gpu.timing import Call, Clock
from lab.record import Provenance
from sim.errors import EnvironmentFailure
from sim.machine import Machine

SIZES = tuple(2**20 * mib for mib in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048))  # bytes of a read of HBM
CHAIN_MOST = 2**29  # bytes of one in a chain, which needs many copies
L2_SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)  # of L2: each half of it can keep a copy of what the other's SMs read
CLUSTERS = (2, 3, 4, 5, 6, 7, 8, 16)  # CTAs
ROUNDS = 9

Prepare = Callable[[], Call | None]  # makes a call that enqueues a large GEMM on CuPy's current stream, if it can
Step = Callable[[Calibration], Calibration]


@dataclass(frozen=True)
class Progress:
    """What has just been measured, how many of all steps are done, and the calibration so far."""

    what: str
    done: int
    steps: int
    calibration: Calibration


def calibrate(
    machine: Machine,
    origin: Provenance,
    gemm: Prepare,
    sizes: Sequence[int] = SIZES,
    rounds: int = ROUNDS,
) -> Iterator[Progress]:
    """A calibration that grows by a figure at each step; the last is whole.

    Without a GEMM the clock that the card holds under it stays null, as do dependent launches and clusters where the
    architecture has none, and the peer where there is one GPU.
    """
    gpu, run = card(), origin["run"]
    source = Run(
        time=origin["time"],
        commit=origin["commit"],
        dirty=origin["dirty"],
        command=origin["command"],
        card=gpu.name,
        driver=gpu.driver,
    )
    found = Calibration(machine=machine.name, card=gpu.name, runs={run: source})
    steps = list(_steps(run, gemm, sizes, rounds))
    for done, (what, step) in enumerate(steps, 1):
        found = step(found)
        yield Progress(what, done, len(steps), found)


def _steps(run: str, gemm: Prepare, sizes: Sequence[int], rounds: int) -> Iterator[tuple[str, Step]]:
    """The steps in their order: the idle clock first, the peer and the GEMM, which heat the card, last."""
    gpu = card()
    clocks = CLOCKS if gpu.clusters else [clock for clock in CLOCKS if clock != Clock.CHAIN]  # both came with sm_90
    yield "SM clock, idle", partial(_idle_clock, run)
    for clock in clocks:
        yield f"empty launch, {clock}", partial(_launch, run, Clock(clock))
        for nbytes in (nbytes for nbytes in sizes if clock != Clock.CHAIN or nbytes <= CHAIN_MOST):
            yield f"read of {nbytes / 2**20:g} MiB, {clock}", partial(_read, run, Clock(clock), nbytes, rounds)
    yield "copy", partial(_copy, run, rounds)
    for share in L2_SHARES:
        nbytes = int(share * gpu.l2_bytes) // 4096 * 4096
        yield f"read of {nbytes / 2**20:g} MiB in L2", partial(_l2_read, run, nbytes, rounds)
    if gpu.clusters:
        yield "clusters at once", partial(_clusters, run)
    yield "copy to a peer", partial(_peer, run, rounds)
    yield "SM clock, GEMM", partial(_gemm_clock, run, gemm)


def _idle_clock(run: str, so_far: Calibration) -> Calibration:
    return _with_clock(so_far, "idle", conditions().sm_clock, run)


def _launch(run: str, clock: Clock, so_far: Calibration) -> Calibration:
    figure = Measured(ceilings.empty_launch(clock).us, run)
    return structs.replace(so_far, launch_us={**so_far.launch_us, clock.value: figure})


def _read(run: str, clock: Clock, nbytes: int, rounds: int, so_far: Calibration) -> Calibration:
    (best,) = ceilings.read_ceilings(clock, (nbytes,), rounds)
    reads = (*(so_far.reads[clock.value] or ()), Read(nbytes, best.us, best.launch_shape, run))
    grown = structs.replace(so_far, reads={**so_far.reads, clock.value: reads})
    return _with_clock(grown, "read", best.conditions.sm_clock, run)  # in the end that under the largest read


def _copy(run: str, rounds: int, so_far: Calibration) -> Calibration:
    return structs.replace(so_far, copy_bytes_per_s=Measured(ceilings.copy_ceiling(rounds=rounds).bandwidth, run))


def _l2_read(run: str, nbytes: int, rounds: int, so_far: Calibration) -> Calibration:
    best = ceilings.l2_ceiling(nbytes, rounds)
    reads = (*(so_far.l2_reads or ()), Read(nbytes, best.us, best.launch_shape, run))
    return structs.replace(so_far, l2_bytes=Measured(card().l2_bytes, run), l2_reads=reads)


def _clusters(run: str, so_far: Calibration) -> Calibration:
    counts = {}
    for ctas in CLUSTERS:
        with suppress(EnvironmentFailure):  # a chip that takes no clusters so large
            counts[str(ctas)] = Measured(probes.clusters_at_once(ctas), run)
    return structs.replace(so_far, clusters_at_once=counts)


def _peer(run: str, rounds: int, so_far: Calibration) -> Calibration:
    found = ceilings.peer_ceiling(rounds=rounds)
    return structs.replace(so_far, peer_bytes_per_s=Measured(found.bandwidth, run)) if found else so_far


def _gemm_clock(run: str, gemm: Prepare, so_far: Calibration) -> Calibration:
    call = gemm()
    return _with_clock(so_far, "mma", ceilings.held(call).sm_clock, run) if call else so_far


def _with_clock(so_far: Calibration, load: str, mhz: float | None, run: str) -> Calibration:
    figure = None if mhz is None else Measured(mhz, run)
    return structs.replace(so_far, sm_clock_mhz={**so_far.sm_clock_mhz, load: figure})
