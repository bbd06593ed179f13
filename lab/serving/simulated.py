"""A loop of predicted times: no chip, no weights, a virtual clock."""

from typing import NamedTuple

from lab.inference.step_input import PAGE, Layout
from lab.problems import Model
from lab.serving.clock import Clock, VirtualClock
from lab.serving.engine import Engine, HostCost, Observer
from lab.serving.executor import Pace, Powered, PredictedExecutor, scripted
from lab.serving.journal import Journal
from lab.serving.policy import Policy
from lab.serving.scheduler import Scheduler
from lab.serving.step import StepPlan
from lab.serving.times import StepTimes
from sim.errors import InputError
from sim.machine import Machine


class Overheads(NamedTuple):
    """Microseconds of a step besides its chip's: the host's, and between the graphs of two steps."""

    host: HostCost = HostCost()
    gap_us: float = 0.0


class ScaledTimes:
    """Predicted times, each step's by a factor that its bucket was measured to need; `usual` where it was not."""

    def __init__(self, times: StepTimes, factors: dict[Layout, float], usual: float) -> None:
        self._buckets, self._powered = times.buckets, Powered(times)
        self._factors, self._usual = factors, usual

    def plan_us(self, plan: StepPlan, idle_us: float) -> float:
        """Microseconds of the next step."""
        bucket = self._buckets.of(plan.singles, plan.chunks, plan.tokens)
        return self._powered.plan_us(plan, idle_us) * self._factors.get(bucket, self._usual)


def simulated(
    model: Model,
    machine: Machine,
    policy: Policy,
    observe: Observer,
    overheads: Overheads | None = None,
    pace: Pace | None = None,
    clock: Clock | None = None,
    look_ahead: bool = True,
    journal: Journal | None = None,
) -> Engine:
    """A loop whose steps take what is predicted, or what `pace` says; by the wall's clock it waits for them."""
    times = StepTimes(model, machine, policy.buckets)
    overheads = overheads or Overheads()
    executor = PredictedExecutor(pace or Powered(times), scripted(model.vocab), overheads.gap_us)
    scheduler = Scheduler(policy, times)
    return Engine(scheduler, executor, clock or VirtualClock(), observe, look_ahead, overheads.host, journal)


def pages_within(model: Model, machine: Machine, engines: int = 1) -> int:
    """Pages of each engine that fit a machine's memory beside its weights, a tenth kept for what steps work on.

    Raises InputError where not even two do.
    """
    room = 0.9 * machine.hbm_bytes / engines - model.bytes["weights"]
    pages = int(room // (PAGE * model.kv_bytes_per_token))
    if pages < 2:
        raise InputError(f"the model's weights leave no room for a cache in the {machine.title}'s memory")
    return pages
