"""Tensor parallelism: what one of several GPUs has of a model, and how long their steps take together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from lab import catalog
from lab.problems import Model
from lab.problems.all_reduce import AllReduce
from lab.serving.power import Heat, Work
from lab.serving.step import Buckets, StepPlan
from lab.serving.times import CLOCK, StepTimes
from sim.errors import InputError
from sim.machine import Machine

KERNELS = ("all_reduce_one_shot", "all_reduce_flagged")


def share_of(model: Model, ranks: int) -> Model:
    """What each rank has, as `StepWeights.load` divides it: heads and columns of the MLP; embedding and head are whole.

    Raises InputError where they cannot be shared evenly.
    """
    for name in ("q_heads", "kv_heads", "ffn"):
        if getattr(model, name) % ranks:
            raise InputError(f"{ranks} ranks cannot share {name} = {getattr(model, name):,} evenly")
    return replace(model, **{name: getattr(model, name) // ranks for name in ("q_heads", "kv_heads", "ffn")})


@lru_cache(maxsize=1024)
def all_reduce_us(machine: Machine, m: int, n: int, form: str) -> float:
    """Microseconds that the ranks of a step are predicted to need for a sum of [m, n] on each."""
    problem = AllReduce(m, n, form)
    kernels = [catalog.get(name) for name in KERNELS]
    return min(k.predicted_us(problem, k.best_guess(problem, machine), machine, CLOCK) for k in kernels)


@dataclass(frozen=True)
class ParallelTimes:
    """Steps of a model on two GPUs, as `StepTimes` of one: a rank's share, and two sums a layer."""

    model: Model
    machine: Machine
    buckets: Buckets
    ranks: int = 2

    @cached_property
    def share(self) -> StepTimes:
        """A rank's own work."""
        return StepTimes(share_of(self.model, self.ranks), self.machine, self.buckets)

    def sums_us(self, tokens: int) -> float:
        """Microseconds of all sums of a step of so many tokens, those that fill its bucket up among them."""
        m = self.model
        return 2 * m.layers * all_reduce_us(self.machine, tokens, m.d, m.unit)

    def heat(self) -> Heat:
        """As `StepTimes.heat`, of each machine."""
        return self.share.heat()

    def plan(self, plan: StepPlan) -> Work:
        """As `StepTimes.plan`, of each machine."""
        tokens = self.buckets.of(plan.singles or not plan.chunks, plan.chunks, plan.tokens).tokens if plan.rows else 0
        return self.share.plan(plan).and_(Work(self.sums_us(tokens) if tokens else 0.0))

    def rows_us(self, starts: Sequence[int], counts: Sequence[int]) -> float:
        """Microseconds of sequences with so many new tokens after so many that they had, one token first."""
        singles = sum(count == 1 for count in counts)
        tokens = self.buckets.of(singles, len(counts) - singles, sum(counts)).tokens
        return self.share.rows_us(starts, counts) + self.sums_us(tokens)

    def step(self, singles: int, tokens: int, single_kv: int, chunk_start: int) -> Work:
        """As `StepTimes.step`, of each machine."""
        return self.share.step(singles, tokens, single_kv, chunk_start).and_(Work(self.sums_us(tokens)))

    def recompute_us(self, tokens: int) -> float:
        """As `StepTimes.recompute_us`."""
        steps = -(-tokens // self.buckets.max_tokens)
        return self.share.recompute_us(tokens) + steps * self.sums_us(min(tokens, self.buckets.max_tokens))

    def swap_us(self, pages: int) -> float:
        """As `StepTimes.swap_us`; each rank copies its own half."""
        return self.share.swap_us(pages)
