"""The counters and sector marks of one simulated launch."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.cache import crossing, replay
from sim.cache.walk import Requests, l2_of, reread
from sim.counts import EXACT, SECTOR, Counts
from sim.launch import Launch
from sim.machine import Machine

# Columns of a counter row; Numba sees them as constants.
FIELDS = EXACT
FLOPS, MMA_FLOPS, EXP, LOAD_SECTORS, STORE_SECTORS, TMA_LOAD_BYTES, L2_TO_SM, SM_TO_L2 = range(len(FIELDS))


class SimulatedChip:
    """One launch on a simulated machine: a counter row for each SM and a byte of marks for each 32-byte sector.

    CTAs are dealt to SMs round robin. Each SM counts into its own row, so that SMs can run in parallel and the sums do
    not depend on how many do.
    """

    def __init__(self, launch: Launch, machine: Machine) -> None:
        self.machine = machine
        self.count = np.zeros((machine.sms, len(FIELDS)), np.int64)
        self._marks = {a.name: np.zeros(-(-a.nbytes // SECTOR), np.uint8) for a in launch.arrays}
        self._peers = [a.name for a in launch.arrays if a.peer]

    def marks(self, name: str) -> NDArray[np.uint8]:
        """The sector marks of one array argument."""
        return self._marks[name]

    def marks_of(self, *names: str) -> Iterator[NDArray[np.uint8]]:
        """The sector marks of several array arguments; none of one that this launch is without."""
        return (self._marks.get(name, np.zeros(0, np.uint8)) for name in names)

    def on_all_cores(self, simulate: Callable[..., None], *arguments: Any) -> None:
        """`simulate(core, cores, *arguments)` on every core of the host; the SMs core, core + cores ... are its own.

        It is compiled with `nogil`. A `prange` over the SMs would do as well, but Numba makes machine code of all that
        it reaches three times more, and that takes longer than all the rest.
        """
        from sim.cached_jit import threads  # loaded with the first compiled code

        cores = min(threads(), len(self.count))
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(lambda core: simulate(core, cores, *arguments), range(cores)))

    def each_sm(self, simulate: Callable[..., None], *arguments: Any) -> None:
        """`simulate(counters, sm, sms, *arguments)` of every SM, which has counters of its own, on all cores.

        It is compiled with `nogil`.
        """
        from sim.cached_jit import threads

        sms = len(self.count)
        with ThreadPoolExecutor(threads()) as pool:
            list(pool.map(lambda sm: simulate(self.count[sm], sm, sms, *arguments), range(sms)))

    def counts(self, requests: Requests | None = None) -> Counts:
        """What the primitives counted, and HBM traffic: by the marks, and what a walk of the requests reads again."""
        total = self.count.sum(axis=0)
        traffic = replay(self._marks.values(), self.machine)
        again = 0 if requests is None else reread(requests, l2_of(self.machine))
        return Counts(
            **{name: int(value) for name, value in zip(FIELDS, total, strict=True)},
            hbm_read_bytes=traffic.read_bytes + again,
            hbm_write_bytes=traffic.write_bytes,
            l2_dirty_bytes=traffic.dirty_bytes,
            **crossing([self._marks[name] for name in self._peers]),
        )
