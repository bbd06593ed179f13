"""Several GPUs for one model, by predicted times: replicas, prefill beside decode, or one engine on two GPUs."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from lab.problems import Model
from lab.serving.clock import VirtualClock
from lab.serving.disaggregation.fleet import Arrived, Disaggregated, Fleet, Replicas
from lab.serving.disaggregation.handover import Receiver, Sender
from lab.serving.disaggregation.link import Link
from lab.serving.disaggregation.parallel import ParallelTimes, share_of
from lab.serving.engine import Engine, Observer
from lab.serving.executor import Powered, PredictedExecutor, scripted
from lab.serving.policy import Policy
from lab.serving.scheduler import Scheduler
from lab.serving.simulated import Overheads, pages_within
from lab.serving.times import StepTimes
from sim.errors import InputError
from sim.machine import Machine

REPLICAS, DISAGGREGATE, TENSOR_PARALLEL = "replicas", "disaggregate", "tensor_parallel"


@dataclass(frozen=True)
class Setup:
    """One of the three ways to use several GPUs: so many replicas, P:D engines, or ranks of one engine.

    Raises InputError for what cannot be.
    """

    way: str = REPLICAS
    engines: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if self.way not in (REPLICAS, DISAGGREGATE, TENSOR_PARALLEL):
            raise InputError(f"unknown set-up {self.way!r}; there are {REPLICAS}, {DISAGGREGATE}, {TENSOR_PARALLEL}")
        if len(self.engines) != 1 + (self.way == DISAGGREGATE) or min(self.engines) < 1:
            raise InputError(f"{self.way} takes {'P:D' if self.way == DISAGGREGATE else 'a number'}, each at least 1")
        if self.way == TENSOR_PARALLEL and self.engines != (2,):
            raise InputError(f"tensor parallelism is of two GPUs; got {self.engines[0]}")

    @classmethod
    def of(cls, text: str) -> "Setup":
        """The set-up of words such as "disaggregate=1:1"; raises InputError for others."""
        way, _, number = text.partition("=")
        try:
            return cls(way, tuple(int(n) for n in number.split(":")))
        except ValueError:
            raise InputError(
                f"a set-up is {REPLICAS}=N, {DISAGGREGATE}=P:D or {TENSOR_PARALLEL}=2; got {text!r}"
            ) from None

    def __str__(self) -> str:
        return f"{self.way}={':'.join(map(str, self.engines))}"

    @property
    def gpus(self) -> int:
        return sum(self.engines)

    def pages(self, model: Model, machine: Machine) -> int:
        """Pages of each engine's cache that fit beside its weights; raises InputError where not two do."""
        return pages_within(share_of(model, 2) if self.way == TENSOR_PARALLEL else model, machine)


def fleet_of(
    setup: Setup,
    model: Model,
    machine: Machine,
    policy: Policy,
    observe: Callable[[int], Observer],
    overheads: Overheads | None = None,
    arrived: Arrived | None = None,
) -> Fleet:
    """Engines that take predicted times; `observe` gives the observer of each by its number, prefill's first.

    `arrived` hears of sequences whose first token came with a push. Engines of prefill fill their steps whatever the
    policy's ITL budget is: nobody decodes there.
    """
    given = overheads or Overheads()

    def engine(number: int, kind: type[Scheduler], rules: Policy) -> Engine:
        parallel = setup.way == TENSOR_PARALLEL
        times = (ParallelTimes if parallel else StepTimes)(model, machine, rules.buckets)
        executor = PredictedExecutor(Powered(times), scripted(model.vocab), given.gap_us)
        return Engine(kind(rules, times), executor, VirtualClock(), observe(number), host=given.host)

    if setup.way == DISAGGREGATE:
        prefills, decodes = setup.engines
        senders = [engine(i, Sender, replace(policy, itl_us=0.0)) for i in range(prefills)]
        receivers = [engine(prefills + i, Receiver, policy) for i in range(decodes)]
        return Disaggregated(senders, receivers, Link(model, machine), arrived)
    return Replicas([engine(i, Scheduler, policy) for i in range(setup.engines[0] if setup.way == REPLICAS else 1)])
