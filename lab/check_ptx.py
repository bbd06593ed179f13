"""A kernel's own PTX on the emulated chip: result, counts and hazards over many interleavings; a trace of one."""

from dataclasses import asdict, dataclass
from typing import Any

from lab.kernel import Kernel
from lab.problems import Problem
from lab.ptx_executor import Emulator
from lab.verify import Verification, verify
from sim.counts import Counts
from sim.emulator import Hazard, to_chrome_trace
from sim.machine import Machine


@dataclass(frozen=True)
class PtxCheck:
    """What a kernel's PTX did: a verification for each seed, each distinct hazard with the first seed that met it."""

    verifications: tuple[Verification, ...]
    hazards: tuple[tuple[int, Hazard], ...]

    @property
    def passed(self) -> bool:
        return not self.hazards and all(v.passed for v in self.verifications)

    @property
    def error(self) -> float:
        """The largest |difference| / bound of any seed."""
        return max(v.check.error for v in self.verifications)

    @property
    def counts(self) -> Counts:
        """What every seed counted; where one differs, `passed` is false."""
        return self.verifications[0].counted

    def as_dict(self) -> dict[str, Any]:
        """The fields "ptx" and "hazards" of the verb's JSON; a hazard carries the seed of its interleaving."""
        return {
            "ptx": self.counts.as_dict(),
            "hazards": [{**asdict(hazard), "seed": seed} for seed, hazard in self.hazards],
        }


def check_ptx(kernel: Kernel, problem: Problem, schedule: Any, machine: Machine, seeds: int = 1) -> PtxCheck:
    """Run a kernel's PTX in `seeds` random interleavings, each on fresh inputs, and check everything.

    Raises InputError or ScheduleError for what the kernel refuses, EmulatorError for PTX the emulator does not know.
    """
    hazards: dict[tuple[str, str, str], tuple[int, Hazard]] = {}
    verifications = []
    for seed in range(seeds):
        execute = Emulator(machine, seed=seed)
        verifications.append(verify(kernel, problem, schedule, machine, execute, seed))
        for hazard in execute.hazards:
            other = hazard.other.line if hazard.other else ""
            hazards.setdefault((hazard.kind, hazard.access.line, other), (seed, hazard))
    return PtxCheck(tuple(verifications), tuple(hazards.values()))


def trace_ptx(kernel: Kernel, problem: Problem, schedule: Any, machine: Machine, seed: int = 0) -> dict[str, Any]:
    """One interleaving as Chrome trace JSON, which Perfetto opens: when each agent ran, copied or waited for what.

    Launches are processes, agents their threads. Raises what `check_ptx` raises.
    """
    execute = Emulator(machine, seed=seed, trace=True)
    verify(kernel, problem, schedule, machine, execute, seed)
    events = [
        {**event, "pid": process}
        for process, emulation in enumerate(execute.emulations)
        for event in to_chrome_trace(emulation)["traceEvents"]
    ]
    return {"traceEvents": events, "displayTimeUnit": "ns"}
