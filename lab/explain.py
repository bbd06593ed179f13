"""Explain a problem on a machine before running anything: bills, intensity, ridge, regime, floor, what is predicted."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lab.cards import CLOCKS
from lab.execute.plan import Plan, plan
from lab.kernel import RANKING_CLOCK, schedule_fields
from lab.problems import Problem, Question
from sim.errors import InputError
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

    @cached_property
    def chosen(self) -> Plan | None:
        """How `lab.choice` would run the problem; None for a whole model, and where no kernel takes it."""
        if not isinstance(self.problem, Problem):
            return None
        try:
            return plan(self.problem, self.machine)
        except InputError:
            return None

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
            **_prediction(self.chosen),
        }


def _prediction(chosen: Plan | None) -> dict[str, Any]:
    """The chosen kernel and schedule, and their bills by every clock; all null where there is none."""
    if chosen is None:
        return {"kernel": None, "schedule": None, "predicted_us": None, "predicted": None}
    return {
        "kernel": chosen.kernel.name,
        "schedule": schedule_fields(chosen.schedule),
        "predicted_us": chosen.predicted_us(RANKING_CLOCK),
        "predicted": {clock: chosen.bills(clock).as_dict() for clock in CLOCKS},
    }


def explain(problem: Question, machine: Machine = H100) -> Explanation:
    """Weigh a linear layer, an attention or a whole model on a machine.

    A whole model is taken as one launch, which no version of it can
    undercut. Raises InputError where the machine has no such unit.
    """
    total = problem.bytes["total"]
    placed = roofline(problem.flops, total, problem.unit, machine)
    return Explanation(problem, machine, placed, total <= machine.hbm_bytes)
