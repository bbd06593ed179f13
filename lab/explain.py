"""Explain a problem on a machine before running anything: both bills, intensity, ridge, regime, floor."""

from dataclasses import dataclass
from typing import Any

from lab.problems import Question
from sim.machine import H100, Machine
from sim.roofline import Roofline, roofline


@dataclass(frozen=True)
class Explanation:
    """A problem placed on a machine's roofline at data-sheet rates.

    `fits` is whether the problem's bytes are within the machine's HBM.
    """

    problem: Question
    machine: Machine
    roofline: Roofline
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        """The document of `lab explain --json`: times in microseconds, intensities in FLOP per byte."""
        p, r = self.problem, self.roofline
        return {
            "problem": p.as_dict(),
            "machine": self.machine.name,
            "flops": p.flops,
            "bytes": p.bytes,
            "intensity": r.intensity,
            "weight_intensity": p.weight_intensity,
            "ridge": r.ridge,
            "regime": r.regime,
            "floor_us": r.floor_us,
            "compute_us": r.compute_us,
            "memory_us": r.memory_us,
            "launch_us": r.launch_us,
            "fits": self.fits,
            "details": p.details,
        }


def explain(problem: Question, machine: Machine = H100) -> Explanation:
    """Weigh a linear layer, an attention or a whole model on a machine.

    A whole model is taken as one launch, which no version of it can
    undercut. Raises InputError where the machine has no such unit.
    """
    total = problem.bytes["total"]
    placed = roofline(problem.flops, total, problem.unit, machine)
    return Explanation(problem, machine, placed, total <= machine.hbm_bytes)
