"""A calibration of a card that is not at hand, from the records it left; what they do not hold stays null."""

from collections.abc import Iterable, Sequence
from statistics import median

from lab.cards.figures import Calibration, Measured, Read, Run
from lab.record import Archive, Record
from sim.errors import InputError
from sim.machine import Machine

MMA_FLOPS = 10**12  # of a GEMM that keeps the tensor cores busy for long enough to reach the clock it can hold


def from_records(machine: Machine, past: Archive) -> Calibration:
    """The newest measured ceilings of such a card, and the SM clock under its largest sustained bf16 GEMM.

    Raises InputError where no record of ceilings is about such a card.
    """
    ceilings = past.timed(experiment="ceilings", machine=machine.name)
    if not ceilings:
        raise InputError(f"no record of the experiment ceilings was measured on an {machine.title}")
    gemms = _sustained_gemms(past, machine)
    reading = [r for r in ceilings if r.metrics.get("what") == "read"]
    reads = {clock: _reads(r for r in reading if r.clock == clock) for clock in ("cold", "graph")}
    return Calibration(
        machine=machine.name,
        card=ceilings[0].card,
        runs={r.run: _run(r) for r in (*ceilings, *gemms)},
        launch_us={"cold": _launch(ceilings, "cold"), "graph": _launch(ceilings, "graph"), "chain": None},
        reads={**reads, "chain": None},
        copy_bytes_per_s=_copy(ceilings),
        sm_clock_mhz={"idle": None, "read": _clock(reading), "mma": _clock(gemms)},
    )


def _run(record: Record) -> Run:
    return Run(
        time=record.time,
        commit=record.commit,
        dirty=record.dirty,
        command=record.command,
        card=record.card or "",
        driver=record.driver or "",
    )


def _launch(ceilings: Sequence[Record], clock: str) -> Measured | None:
    found = [r for r in ceilings if r.clock == clock and r.metrics.get("what") == "empty kernel"]
    return Measured(found[-1].us or 0.0, found[-1].run) if found else None


def _reads(records: Iterable[Record]) -> tuple[Read, ...] | None:
    found = [Read(int(r.metrics["nbytes"] or 0), r.us or 0.0, str(r.metrics["launch_shape"]), r.run) for r in records]
    return tuple(sorted(found, key=lambda read: read.nbytes)) or None


def _copy(ceilings: Sequence[Record]) -> Measured | None:
    found = [r for r in ceilings if r.metrics.get("what") == "copy"]
    return Measured(float(found[-1].metrics["bytes_per_s"] or 0), found[-1].run) if found else None


def _clock(records: Sequence[Record]) -> Measured | None:
    """The median SM clock, as of the newest of the records."""
    clocks = [r.clocks["sm"] for r in records if r.clocks and "sm" in r.clocks]
    return Measured(median(clocks), records[-1].run) if clocks else None


def _sustained_gemms(past: Archive, machine: Machine) -> list[Record]:
    """The records of the newest run that timed a large dense bf16 GEMM at a sustained pace."""
    runs = [
        r
        for r in past.where(on="gpu", machine=machine.name).records
        if r.us and r.clocks and r.theory and r.metrics.get("pace") == "sustained" and _is_large_bf16(r)
    ]
    return [r for r in runs if r.run == runs[-1].run]


def _is_large_bf16(record: Record) -> bool:
    problem = record.problem or {}
    large = ((record.theory or {}).get("mma_flops") or 0) >= MMA_FLOPS
    return large and problem.get("weights") == problem.get("activations", "bf16") == "bf16"
