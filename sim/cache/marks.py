"""From the sectors that SMs asked for to the bytes that HBM moves at least: each sector once.

Where the working set outgrows L2, `sim.cache.walk` says what is read again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.counts import SECTOR
from sim.machine import Machine

READ, WRITTEN = 1, 2  # bits of a sector's mark
DIRTY = 0.1  # of an L2's bytes: written lines beyond it go to HBM while the kernel runs, as an H100 was seen to do


@dataclass(frozen=True)
class Traffic:
    """HBM bytes; `dirty_bytes` of the written ones are still in L2 when the kernel ends."""

    read_bytes: int
    write_bytes: int
    dirty_bytes: int


def replay(marks: Iterable[NDArray[np.uint8]], machine: Machine) -> Traffic:
    """HBM traffic of a launch from the READ and WRITTEN marks of each array's sectors."""
    read = written = 0
    for mark in marks:
        read += int(np.count_nonzero(mark & READ))
        written += int(np.count_nonzero(mark & WRITTEN))
    dirty = min(written * SECTOR, int(DIRTY * machine.l2_bytes))
    return Traffic(read * SECTOR, written * SECTOR, dirty)


def crossing(marks: Sequence[NDArray[np.uint8]]) -> dict[str, int]:
    """The peer fields of a launch's Counts, from the marks of the arrays in other GPUs' memory; none without any."""
    if not marks:
        return {}
    traffic = {"peer_read_bytes": READ, "peer_write_bytes": WRITTEN}
    return {name: SECTOR * sum(int(np.count_nonzero(mark & bit)) for mark in marks) for name, bit in traffic.items()}
