"""Prefill and decode are two machines: one weight matrix by GEMM and by GEMV, each kernel also on the other's shape."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.lookup import cases, question_of
from experiments.questions.duel import duel, grounds, spelled, tokens
from experiments.rows import Row, Verdict, kernel_rows
from experiments.running.backends import Backend
from lab.explain import explain
from lab.record import Archive, Record
from sim.errors import InputError
from sim.machine import machine

QUESTION = "The same weights in prefill and in decode: can one kernel serve both?"


@dataclass(frozen=True)
class Options:
    """A square layer of width d; prefill takes m tokens at once, decode one."""

    d: int = 4096
    m: int = 2048
    gemm: str = "gemm_cluster"
    gemv: str = "gemv_vectorized"

    def __post_init__(self) -> None:
        if self.m < 2 or self.gemm == self.gemv:
            kernels = f"{self.gemm} and {self.gemv}"
            raise InputError(f"two machines need m of at least 2 and two kernels; m = {self.m}, {kernels}")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Each kernel on its own shape, then each on the other's."""
    yield from backend.kernels(grounds(options.gemm, options.gemv, options.d, options.d, options.m))


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Every kernel on every shape."""
    for record in cases(records):
        regime = explain(question_of(record), machine(record.machine)).roofline.regime
        yield from kernel_rows(record, past, f"{record.kernel}, m = {tokens(record):,} ({regime}-bound)")


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """How much slower the wrong kernel is on each shape, and how much of the tensor cores' work it wastes on decode."""
    found = duel(records)
    slower, theory = found.slower(past), found.gemm_on_one.theory or {}
    waste = (theory.get("mma_flops") or 0) / (theory.get("flops") or 1)
    gemm, gemv = found.gemm, found.gemv
    return Verdict(
        slower.held,
        f"At m = {tokens(gemm):,} {gemv.kernel} takes {spelled(slower.many)} times as long as {gemm.kernel}; "
        f"at m = 1 {gemm.kernel} takes {spelled(slower.one)} times as long as {gemv.kernel} and issues {waste:,.3g} "
        f"tensor-core FLOPs for each useful one ({slower.source}): {slower.conclusion}",
    )
