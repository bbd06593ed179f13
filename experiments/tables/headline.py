"""The two machines in six rows and one picture: a GEMM's kernel, a GEMV's and cuBLAS in prefill and in decode."""

from collections.abc import Iterator

from experiments import markdown
from experiments.chart import Chart, Series
from experiments.lookup import best_peer, is_peer, layer_of, read_rate
from experiments.markdown import figure, share
from experiments.tables.roofline import INTENSITY, RATE, TERA, dots, roofs_of
from lab.problems import Linear
from lab.record import Archive, Record
from sim.machine import MACHINES

EXPERIMENT, CLOCK = "two_machines", "graph"
LOW = 1000  # the ridge is drawn from the peak down to this part of it
HEADINGS = ("", "kernel", "time, us", "of the tensor cores' peak", "of the rate that HBM is read at", "x cuBLAS")


def table(past: Archive) -> str:
    """Each kernel in each phase: its time, its shares of both roofs, and cuBLAS's time over its own."""
    found = _newest(past)
    if not found:
        return f"No records yet: `lab run {EXPERIMENT} --on gpu` makes them."
    rate, source = read_rate(past, found[0].machine)
    rows = []
    for ours in _phases(found):
        layer, peer = layer_of(ours[0]), best_peer(found, ours[0])
        rows += [
            [_phase(layer), f"`{record.kernel}`", *_cells(record, rate, best_peer(found, record))] for record in ours
        ]
        rows += [[_phase(layer), "cuBLAS", *_cells(peer, rate, peer)]] if peer else []
    chip = MACHINES[found[0].machine]
    notes = (
        f"One layer of {layer.n:,} x {layer.k:,} in bf16, launches back to back in a CUDA graph, weights in HBM. "
        f"The peak is the data sheet's {chip.peak('bf16') / 1e12:,.4g} TFLOP/s"
    )
    notes += f", HBM is read at {rate / 1e12:.3g} TB/s ({source})." if rate else "."
    return "\n\n".join([markdown.table(HEADINGS, rows), f"{notes} {markdown.measured_on([found[0].source])}"])


def pictures(past: Archive) -> dict[str, Chart]:
    """The roofline of the card that was measured last, with each phase's own kernel as a dot."""
    found = _newest(past)
    if not found:
        return {}
    chip = MACHINES[found[0].machine]
    own = [ours[0] for ours in _phases(found)]
    title = f"One layer, two machines: prefill and decode on the {chip.title}"
    roofs = roofs_of(chip, [layer_of(record) for record in own], read_rate(past, chip.name)[0])
    marks = [each for record in own for each in dots(f"{_phase(layer_of(record))}: {record.kernel}", record)]
    peak, ridge = chip.peak("bf16") / TERA, chip.ridge("bf16")
    line = Series(f"ridge: {ridge:.0f} FLOP/B", ((ridge, peak), (ridge, peak / LOW)), "limit")
    return {"two_machines": Chart(title, INTENSITY, RATE, (*roofs, line, *marks))}


def _newest(past: Archive) -> list[Record]:
    """What was measured on the card, and of the commit, that the experiment last ran on."""
    found = [record for record in past.where(experiment=EXPERIMENT, clock=CLOCK, on="gpu").records if record.us]
    return [record for record in found if record.source == found[-1].source]


def _phases(found: list[Record]) -> Iterator[list[Record]]:
    """The newest record of each of our kernels, the fastest first: those of prefill, then those of decode."""
    newest = {(layer_of(r), r.kernel): r for r in found if not is_peer(r)}
    for layer in sorted({layer for layer, _ in newest}, key=lambda layer: -layer.m):
        yield sorted((r for (of, _), r in newest.items() if of == layer), key=lambda r: r.us or 0.0)


def _phase(layer: Linear) -> str:
    return f"prefill, {layer.m:,} tokens" if layer.m > 1 else "decode, 1 token"


def _cells(record: Record, rate: float | None, peer: Record | None) -> list[str]:
    layer, chip, us = layer_of(record), MACHINES[record.machine], record.us or 0.0
    peak = layer.flops / chip.peak(layer.unit) * 1e6
    read = layer.bytes["total"] / (rate or chip.hbm_bandwidth) * 1e6
    return [figure(us), share(peak / us), share(read / us), f"{peer.us / us:.2f}" if peer and peer.us else "-"]
