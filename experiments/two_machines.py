"""Prefill and decode are two machines: one weight matrix by GEMM and by GEMV, each kernel also on the other's shape."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments._chips import Chip
from experiments._rows import Row, Verdict, cases, kernel_rows, question_of, times
from lab.explain import explain
from lab.problems import Linear
from lab.record import Archive, Record
from sim.errors import InputError
from sim.machine import machine

NOISE = 1.02  # times closer than this count as equal
QUESTION = "The same weights in prefill and in decode: can one kernel serve both?"


@dataclass(frozen=True)
class Options:
    """A square layer of width d; prefill takes m tokens at once, decode one."""

    d: int = 4096
    m: int = 2048
    gemm: str = "gemm_wgmma"
    gemv: str = "gemv_vectorized"

    def __post_init__(self) -> None:
        if self.m < 2 or self.gemm == self.gemv:
            kernels = f"{self.gemm} and {self.gemv}"
            raise InputError(f"two machines need m of at least 2 and two kernels; m = {self.m}, {kernels}")


def measure(options: Options, chip: Chip) -> Iterator[Record]:
    """Each kernel on its own shape, then each on the other's."""
    prefill, decode = (Linear(m, options.d, options.d) for m in (options.m, 1))
    yield from chip.kernels(
        [(options.gemm, prefill), (options.gemv, decode), (options.gemm, decode), (options.gemv, prefill)]
    )


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Every kernel on every shape."""
    for record in cases(records):
        regime = explain(question_of(record), machine(record.machine)).roofline.regime
        yield from kernel_rows(record, past, f"{record.kernel}, m = {_tokens(record):,} ({regime}-bound)")


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """How much slower the wrong kernel is on each shape, and how much of the tensor cores' work it wastes on decode."""
    gemm, gemv, gemm_decode, gemv_prefill = cases(records)
    (own_prefill, own_decode, wrong_decode, wrong_prefill), source = times(
        [gemm, gemv, gemm_decode, gemv_prefill], past
    )
    prefill, decode = wrong_prefill / own_prefill, wrong_decode / own_decode
    theory = gemm_decode.theory or {}
    waste = (theory.get("mma_flops") or 0) / (theory.get("flops") or 1)
    return Verdict(
        prefill > 1 and decode > 1 / NOISE,
        f"At m = {_tokens(gemm):,} {gemv.kernel} takes {_ratio(prefill)} times as long as {gemm.kernel}; "
        f"at m = 1 {gemm.kernel} takes {_ratio(decode)} times as long as {gemv.kernel} and issues {waste:,.3g} "
        f"tensor-core FLOPs for each useful one ({source}): {_conclusion(prefill, decode)}",
    )


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _conclusion(prefill: float, decode: float) -> str:
    if min(prefill, decode) > NOISE:
        return "each phase needs a kernel of its own."
    if max(prefill, decode) > NOISE:
        return f"only {'prefill' if prefill > decode else 'decode'} needs a kernel of its own for its time's sake."
    return "one kernel serves both."


def _tokens(record: Record) -> int:
    problem = question_of(record)
    assert isinstance(problem, Linear)
    return problem.m
