"""Explain a problem on a machine before running anything: bills, intensity, ridge, regime, floor, what is predicted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from lab.cards import CLOCKS, calibration, fits
from lab.compile import compile_launch
from lab.execute.plan import Plan, plan
from lab.kernel import RANKING_CLOCK, schedule_fields
from lab.problems import Model, Problem, Question
from sim.errors import InputError
from sim.launch import Launch
from sim.machine import H100, Machine
from sim.machine import machine as machine_named
from sim.occupancy import occupancy
from sim.roofline import Roofline, roofline

if TYPE_CHECKING:
    from lab.inference.model_step import ModelStep

Chooser = Callable[[Problem, Machine], Plan | None]


def chosen_plan(problem: Problem, machine: Machine) -> Plan | None:
    """How `lab.choice` would run a problem; None where no kernel takes it."""
    try:
        return plan(problem, machine)
    except InputError:
        return None


@dataclass(frozen=True)
class Explanation:
    """A problem placed on a machine's roofline at data-sheet rates.

    `fits` is whether the problem's bytes are within the machine's HBM; `choose` finds the plan of a problem or of a
    step's parts, by default as `lab.choice` and as `lab.inference` do.
    """

    problem: Question
    machine: Machine
    roofline: Roofline
    fits: bool
    choose: Chooser | None = field(default=None, repr=False, compare=False)

    @cached_property
    def chosen(self) -> Plan | None:
        """The plan whose times are predicted; None for a whole model, and for what does not fit."""
        if isinstance(self.problem, Model) or not self.fits:
            return None
        return (self.choose or chosen_plan)(self.problem, self.machine)

    @cached_property
    def step(self) -> "ModelStep | None":
        """The parts of a whole model, and how large it may get; None for any other problem."""
        if not isinstance(self.problem, Model):
            return None
        from lab.inference.model_step import ModelStep, step_plan  # loaded on first use: only a model needs them

        return ModelStep(self.problem, self.machine, (self.choose or step_plan) if self.fits else lambda *_: None)

    def as_dict(self, compiled: bool = False) -> dict[str, Any]:
        """The document of `lab explain --json`: times in microseconds, intensities in FLOP per byte.

        Registers are null but where the launches are to be `compiled`, by NVRTC alone; raises KernelError and
        EnvironmentFailure as `lab.compile.compile_launch` does.
        """
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
            "calibrated": calibration(self.machine).card is not None,
            "fits": self.fits,
            "details": p.details,
            **(_prediction(self.chosen, compiled) if self.step is None else self.step.as_dict(r.floor_us)),
        }


def _prediction(chosen: Plan | None, compiled: bool) -> dict[str, Any]:
    """The chosen kernel and schedule, their bills by every clock and their launches; all null where there is none."""
    if chosen is None:
        return dict.fromkeys(("kernel", "schedule", "predicted_us", "predicted", "model_error", "launches"))
    return {
        "kernel": chosen.kernel.name,
        "schedule": schedule_fields(chosen.schedule),
        "predicted_us": chosen.predicted_us(RANKING_CLOCK),
        "predicted": {clock: chosen.bills(clock).as_dict() for clock in CLOCKS},
        "model_error": _model_error(chosen),
        "launches": [_launched(launch, chosen.machine, compiled) for launch in chosen.launches],
    }


def _model_error(chosen: Plan) -> dict[str, Any] | None:
    """How far the kernel's predictions lay from times on such cards; null where nobody judged them there."""
    found = fits.error(chosen.kernel.name, chosen.machine, RANKING_CLOCK)
    if found is None:
        return None
    error, line = found
    return {**asdict(error), "clock": line.clock, "source": line.source}


def _launched(launch: Launch, machine: Machine, compiled: bool) -> dict[str, Any]:
    """A launch's geometry, what it takes of an SM, and how many of its CTAs an SM holds."""
    used = compile_launch(launch, machine).resources[launch.entry] if compiled else None
    registers, static_bytes = (used.registers, used.static_shared_bytes) if used else (None, 0)
    return {
        "entry": launch.entry,
        "grid": launch.grid,
        "cluster": launch.cluster,
        "block": launch.block,
        "shared_bytes": launch.shared_bytes + static_bytes,
        "registers": registers,
        **occupancy(launch, machine, registers, static_bytes).as_dict(),
    }


def explain(problem: Question, machine: Machine | str = H100, choose: Chooser | None = None) -> Explanation:
    """Weigh a linear layer, an attention or another problem, or a step of a whole model on a machine.

    A problem is taken as one launch, which no version of it can undercut; a model's step as the launches that
    `lab.inference` makes of it. Raises InputError where the machine has no such unit.
    """
    if not isinstance(problem, Question):
        raise InputError(f"a problem such as lab.Linear(m=1, n=4096, k=4096) is explained; got {problem!r:.40}")
    if not isinstance(machine, Machine):
        machine = machine_named(machine)
    moved, launches = problem.bytes["total"], 1
    if isinstance(problem, Model):
        moved, launches = problem.streamed_bytes, problem.launches
    placed = roofline(problem.flops, moved, problem.unit, machine, launches)
    return Explanation(problem, machine, placed, problem.bytes["total"] <= machine.hbm_bytes, choose)
