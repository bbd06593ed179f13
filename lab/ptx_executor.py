"""Run a kernel's own PTX on the CPU: the executor that gives `verify` the emulator instead of the tile simulator."""

from functools import reduce
from operator import add

from numpy.typing import NDArray

from lab.compile import compile_launch
from sim.counts import Counts
from sim.emulator import Emulation, Hazard, run
from sim.launch import Launch
from sim.machine import Machine


class Emulator:
    """An `Execute` that compiles each launch to PTX and emulates it; `emulations` holds what each launch found.

    `seed` chooses the interleaving. `check` finds hazards; without it only results and counts remain. Raises
    EmulatorError where a kernel uses an instruction that the emulator does not know.
    """

    def __init__(self, machine: Machine, *, seed: int = 0, check: bool = True, trace: bool = False) -> None:
        self.machine, self.seed, self.check, self.trace = machine, seed, check, trace
        self.emulations: tuple[Emulation, ...] = ()

    def __call__(self, launches: tuple[Launch, ...], arrays: dict[str, NDArray]) -> Counts:
        self.emulations = tuple(self._run(launch, arrays) for launch in launches)
        return reduce(add, (e.counts for e in self.emulations))

    def _run(self, launch: Launch, arrays: dict[str, NDArray]) -> Emulation:
        ptx = compile_launch(launch, self.machine, target="ptx").path.read_text(encoding="utf-8")
        return run(ptx, launch, arrays, self.machine, seed=self.seed, check=self.check, trace=self.trace)

    @property
    def hazards(self) -> tuple[Hazard, ...]:
        """Every hazard of the last call."""
        return tuple(h for e in self.emulations for h in e.hazards)
