"""What the wrong machine costs in time, bytes and FLOPs: a GEMM's kernel decodes one token, a GEMV's a batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from experiments.lookup import cases, counted, note, question_of, times
from experiments.questions.duel import Duel, duel, grounds, spelled, tokens
from experiments.rows import Row, Verdict, counters_of, kernel_rows
from experiments.running.backends import Backend
from experiments.running.jobs import Job
from lab.record import Archive, Record
from sim.errors import InputError

QUESTION = "What does it cost to decode one token by the GEMM's kernel, or a batch by the GEMV's?"


@dataclass(frozen=True)
class Options:
    """One layer, n x k; a batch of m tokens and a single one. `counters` reads hardware counters too."""

    n: int = 4096
    k: int = 4096
    m: int = 64
    gemm: str = "gemm_split_k"
    gemv: str = "gemv_split_k"
    counters: bool = False

    def __post_init__(self) -> None:
        if self.m < 2 or self.gemm == self.gemv:
            kernels = f"{self.gemm} and {self.gemv}"
            raise InputError(f"the wrong machine needs m of at least 2 and two kernels; m = {self.m}, {kernels}")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Each kernel on its own shape, then each on the other's."""
    asked = grounds(options.gemm, options.gemv, options.n, options.k, options.m)
    yield from backend.kernels(asked)
    if options.counters:
        yield from backend.counted([Job(kernel=name, problem=problem.as_dict()) for name, problem in asked])


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Time and bytes of every kernel on every shape, the FLOPs it issues, and how the wrong one's compare."""
    found = duel(records)
    for record in cases(records):
        case = f"{record.kernel}, m = {tokens(record):,}"
        yield from kernel_rows(record, past, case)
        read = counted(past, record)
        issued = (_issued(record, counts or {}) for counts in (record.theory, record.simulated, counters_of(read)))
        source = read.source if read else ""
        yield Row(case, "FLOP issued for each useful one", *issued, source, note(record, read))
        right = found.right(record)
        if right.kernel != record.kernel:
            quantity = f"time over that of {right.kernel}"
            predicted = (record.predicted_us or 0.0) / (right.predicted_us or 1.0)
            (wrong_us, right_us), source = times([record, right], past)
            yield Row(case, quantity, None, predicted, wrong_us / right_us if source == "measured" else None)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """How many times slower each wrong machine is, measured beside predicted, and what for."""
    found = duel(records)
    slower, expected = found.slower(past), found.slower(Archive(()))
    both = slower.source == "measured"
    many, one = (
        f"{spelled(now)} times as long" + (f" ({spelled(then)} predicted)" if both else "")
        for now, then in ((slower.many, expected.many), (slower.one, expected.one))
    )
    return Verdict(
        slower.held,
        f"At m = 1 {found.gemm.kernel} takes {one} as {found.gemv.kernel}: {_why(found, found.gemm_on_one)}; "
        f"at m = {tokens(found.gemm):,} {found.gemv.kernel} takes {many} as {found.gemm.kernel}: "
        f"{_why(found, found.gemv_on_many)} ({slower.source}).",
    )


def _why(found: Duel, wrong: Record) -> str:
    """What the wrong kernel issues and moves, for each that the problem needs and that the right kernel moves."""
    right = found.right(wrong)
    theory, best = wrong.theory or {}, right.theory or {}
    issued = _issued(wrong, theory) or 0.0
    moved = (theory.get("l2_to_sm_bytes") or 0) / (best.get("l2_to_sm_bytes") or 1)
    return f"it issues {spelled(issued)} FLOPs for each useful one and moves {spelled(moved)} times the bytes from L2"


def _issued(record: Record, counts: Mapping[str, float | None]) -> float | None:
    """FLOPs with all padding for each useful one, on the tensor cores where those are used; None where not counted."""
    issued = counts.get("mma_flops") or counts.get("flops")
    return issued / question_of(record).flops if issued else None
