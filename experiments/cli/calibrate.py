"""lab calibrate: measure what this machine's card does at best, and keep it for predictions."""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import typer

from experiments.cli.options import Deadline, Json
from experiments.cli.output import emit, number, say, table, warn
from experiments.cli.waiting import working
from sim.errors import InputError

GEMM = 8192  # rows and columns of the matrices under whose product the SM clock is read

FromRecords = Annotated[
    str,
    typer.Option(
        metavar="MACHINE",
        help="Measure nothing: make the calibration from the records of a card that is not at hand; the rest is null.",
    ),
]
IntoCheckout = Annotated[
    bool, typer.Option("--into-checkout", help="Write lab/cards/MACHINE.json of this checkout, not your own file.")
]


def calibrate(
    from_records: FromRecords = "",
    into_checkout: IntoCheckout = False,
    deadline: Deadline = 300.0,
    as_json: Json = False,
) -> None:
    """Measure this machine's GPU: launches, reads by size and clock, L2, clocks, a peer. Takes about two minutes.

    The calibration goes to your own folder of cards, where predictions find it before the committed one.
    """
    from lab import cards
    from lab.record import in_checkout

    if into_checkout and not in_checkout():
        raise InputError("--into-checkout needs a checkout of the lab; without it the calibration goes to your folder")
    found = _recorded(from_records) if from_records else _measured(deadline)
    path = (cards.committed_path if into_checkout else cards.user_path)(found.machine)
    cards.write(found, path)
    emit({"path": str(path), "calibration": found, "not_measured": found.not_measured}, as_json, _render)


def _recorded(machine_name: str) -> Any:
    from lab.cards.from_records import from_records
    from lab.record import archive
    from sim.machine import machine

    past = archive()
    for complaint in past.complaints:
        warn(complaint)
    return from_records(machine(machine_name), past)


def _measured(deadline_s: float) -> Any:
    import msgspec

    from lab.cards import Calibration
    from lab.gpu import device, worker
    from lab.record import provenance

    device.require_device()
    with working("calibrating") as now:
        for step in worker.stream(on_device, {"origin": provenance()}, deadline_s):
            now(f"{step['what']}, {step['done']} of {step['steps']}")
    return msgspec.convert(step["calibration"], Calibration)


def on_device(argument: Any) -> Iterator[Any]:
    """What the worker process runs: the steps of lab.gpu.calibrate under `argument`'s provenance."""
    from lab.gpu import device
    from lab.gpu.calibrate import calibrate as steps

    yield from steps(device.machine(), argument["origin"], _gemm)


def _gemm() -> Any:
    """A call of a large fp16 GEMM of random numbers; None where no kernel of the lab runs on this card."""
    import cupy

    import lab
    from sim.errors import LabError

    x, w = (cupy.random.standard_normal((GEMM, GEMM), dtype=cupy.float32).astype(cupy.float16) for _ in range(2))
    call = partial(lab.linear, x, w, out=cupy.empty_like(x))
    try:
        call()
    except LabError:
        return None
    return call


def _render(document: dict[str, Any]) -> None:
    found = document["calibration"]
    rows = [[f"empty launch, {clock}, us", number(v.value if v else None)] for clock, v in found.launch_us.items()]
    for clock, reads in found.reads.items():
        rows += [[f"read of {r.nbytes / 2**20:g} MiB, {clock}, TB/s", _tera(r.bytes_per_s)] for r in reads or ()]
    rows += [[f"read of {r.nbytes / 2**20:g} MiB in L2, TB/s", _tera(r.bytes_per_s)] for r in found.l2_reads or ()]
    copies = {"copy, TB/s": found.copy_bytes_per_s, "copy to a peer, TB/s": found.peer_bytes_per_s}
    rows += [[what, _tera(figure.value if figure else None)] for what, figure in copies.items()]
    rows += [[f"SM clock, {load}, MHz", number(v.value if v else None)] for load, v in found.sm_clock_mhz.items()]
    rows += [[f"clusters of {n} at once", number(v.value)] for n, v in (found.clusters_at_once or {}).items()]
    table([found.card or found.machine, ""], rows)
    if document["not_measured"]:
        say(f"not measured: {', '.join(document['not_measured'])}")
    say(f"written to {document['path']}")


def _tera(rate: float | None) -> str:
    return number(None if rate is None else rate / 1e12)
