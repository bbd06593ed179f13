"""L2 replay: from the sectors that SMs asked for to the bytes that HBM moved.

The simplest honest model: L2 is large enough that every unique sector crosses HBM once, and every written sector is
written back once. It under-counts where the working set outgrows L2.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.counts import SECTOR
from sim.machine import Machine

READ, WRITTEN = 1, 2  # bits of a sector's mark


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
    dirty = min(written * SECTOR, machine.l2_bytes)
    return Traffic(read * SECTOR, written * SECTOR, dirty)
