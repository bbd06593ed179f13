"""What a step takes after those before it: a card whose power, averaged, is at its cap lowers its clock."""

from math import ceil, exp
from typing import NamedTuple, Self

from lab.cards import fits
from sim.machine import Machine

SLICES = 8  # of the time constant, in which power is averaged


class Work(NamedTuple):
    """What a step asks of a chip: microseconds by its kernels' models, operations, bytes to or from HBM."""

    us: float = 0.0
    flops: float = 0.0
    nbytes: float = 0.0
    mixed: bool = False  # whether it has rows of more than one token

    def and_(self, other: "Work") -> "Work":
        """Both, one after the other."""
        us, flops, nbytes = (a + b for a, b in zip(self[:3], other[:3], strict=True))
        return Work(us, flops, nbytes, self.mixed or other.mixed)


NO_WORK = Work()


class Coefficients(fits.Coefficients, frozen=True):
    """Shares of the cap are what a card draws, or would at its full clock."""

    rest: float  # share of the cap that is drawn whatever the card does
    tensor: float  # by tensor cores at the data sheet's peak
    memory: float  # by HBM at the data sheet's bandwidth
    average_us: float  # the time constant of the average that is held against the cap
    slower: float  # by what power of the average's share above the cap the clock falls
    decode: float  # of that, how much steps of one token a row feel, which wait for HBM
    cool: float  # of its kernels' times, measured at a lowered clock in part, what a mixed step takes at the full one


class Heat:
    """A card's averaged power, as a share of its cap, from step to step; it begins at rest."""

    def __init__(self, rules: Coefficients, flops: float, bandwidth: float) -> None:
        self._rules, self._flops, self._bandwidth = rules, flops, bandwidth
        self.load = rules.rest

    @classmethod
    def of(cls, machine: Machine, unit: str) -> Self:
        """That of a machine whose arithmetic is of a format; raises InputError where it has no such unit."""
        rules = fits.coefficients(Coefficients, "step_power", machine, "chain")
        return cls(rules, machine.peak(unit), machine.hbm_bandwidth)

    def copy(self) -> "Heat":
        """Another that is as warm."""
        found = Heat(self._rules, self._flops, self._bandwidth)
        found.load = self.load
        return found

    def rest(self, us: float) -> None:
        """Let so many microseconds pass without work."""
        self._mix(self._rules.rest, us)

    def run(self, work: Work) -> float:
        """Do a step; returns the microseconds that it is predicted to take."""
        rules = self._rules
        cool = work.us * (rules.cool if work.mixed else 1.0)
        if not cool:
            return 0.0
        drawn, feels, took = self._drawn(work, cool), 1.0 if work.mixed else rules.decode, 0.0
        slices = ceil(cool / rules.average_us * SLICES)
        for _ in range(slices):
            us = cool / slices * (1 + feels * (max(1.0, self.load) ** rules.slower - 1))
            took += us
            self._mix(drawn, us)
        return took

    def ran(self, work: Work, us: float) -> None:
        """A step was done, in so many microseconds."""
        if work.us:
            self._mix(self._drawn(work, work.us * (self._rules.cool if work.mixed else 1.0)), us)

    def _drawn(self, work: Work, us: float) -> float:
        """Share of the cap that a step draws at the full clock, where it takes so long."""
        rules = self._rules
        rate = rules.tensor * work.flops / self._flops + rules.memory * work.nbytes / self._bandwidth
        return rules.rest + rate / (1e-6 * us)

    def _mix(self, drawn: float, us: float) -> None:
        kept = exp(-us / self._rules.average_us)
        self.load = self.load * kept + drawn * (1 - kept)
