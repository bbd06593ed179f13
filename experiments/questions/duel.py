"""Two kernels, each on its own shape and on the other's: what the experiments of the two machines share."""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.lookup import cases, layer_of, times
from experiments.running.backends import Pairing
from lab.problems import Linear
from lab.record import Archive, Record

NOISE = 1.02  # times closer than this count as equal


@dataclass(frozen=True)
class Slower:
    """How many times as long the wrong kernel takes as the right one: the GEMV's on many tokens, the GEMM's on one."""

    many: float
    one: float
    source: str  # "measured" or "predicted"

    @property
    def held(self) -> bool | None:
        """Whether many tokens need the GEMM's kernel, and one token does not go better with it; None: so predicted."""
        return (self.many > 1 and self.one > 1 / NOISE) or (False if self.source == "measured" else None)

    @property
    def conclusion(self) -> str:
        if min(self.many, self.one) > NOISE:
            return "each phase needs a kernel of its own."
        if max(self.many, self.one) > NOISE:
            phase = "prefill" if self.many > self.one else "decode"
            return f"only {phase} needs a kernel of its own for its time's sake."
        return "one kernel serves both."


@dataclass(frozen=True)
class Duel:
    """The records of a GEMM's and a GEMV's kernel on their own shapes and on each other's."""

    gemm: Record
    gemv: Record
    gemm_on_one: Record
    gemv_on_many: Record

    def slower(self, past: Archive) -> Slower:
        """By measured times where all were measured by one clock, else by predicted ones."""
        found, source = times([self.gemm, self.gemv, self.gemm_on_one, self.gemv_on_many], past)
        return Slower(found[3] / found[0], found[2] / found[1], source)

    def right(self, record: Record) -> Record:
        """The record of the kernel that the shape of this one is for."""
        return self.gemm if record.problem == self.gemm.problem else self.gemv


def grounds(gemm: str, gemv: str, n: int, k: int, many: int) -> list[Pairing]:
    """Each kernel on its own shape, many tokens or one, then each on the other's."""
    prefill, decode = (Linear(m, n, k) for m in (many, 1))
    return [(gemm, prefill), (gemv, decode), (gemm, decode), (gemv, prefill)]


def duel(records: Sequence[Record]) -> Duel:
    """The four records of `grounds` among those of a run."""
    return Duel(*cases(records)[:4])


def tokens(record: Record) -> int:
    return layer_of(record).m


def spelled(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"
