"""Every kernel: what it adds, and its newest times beside the floor, the prediction and the best peer."""

from experiments import markdown
from experiments.markdown import figure
from experiments.rows import CLOCKS, best_peer, question_of, size_of
from lab import catalog
from lab.explain import explain
from lab.kernel import Kernel
from lab.record import Archive, Record
from lab.tuned import SEARCH
from sim.machine import MACHINES

SHAPES = 4  # of each kernel
_NO_SHAPES_OF_INTEREST = ("fp8_error", "decode_chain")  # a narrow layer that is quick to check; several layers at once


def table(past: Archive) -> str:
    """Every kernel, what it adds, and its newest measured times on the problems that it was last timed on."""
    rows = []
    for kernel in catalog.kernels():
        head = [f"`{kernel.name}`", kernel.adds]
        timed = _newest_times(past, kernel)
        for by_clock in timed:
            record = next(iter(by_clock.values()))
            floor = explain(question_of(record), MACHINES[record.machine]).roofline.floor_us
            figures = [figure(floor), figure(record.predicted_us)]
            for clock in CLOCKS:
                found = by_clock.get(clock)
                peer = best_peer(past.records, found) if found else None
                ratio = f"{peer.us / found.us:.2f}" if found and found.us and peer and peer.us else "-"
                figures += [figure(found.us if found else None), ratio]
            rows.append([*head, size_of(record), *figures, record.source])
            head = ["", ""]
        if not timed:
            rows.append([*head, "", *6 * ["-"], ""])
    headings = ["kernel", "adds", "problem", "floor, us", "predicted, us"]
    headings += [heading for name in CLOCKS.values() for heading in (f"{name}, us", "x best peer")]
    return markdown.table([*headings, "on"], rows)


def _newest_times(past: Archive, kernel: Kernel) -> list[dict[str, Record]]:
    """By clock, the fastest schedule of the newest run for each of the last few problems, the smallest work first.

    Problems that the kernel has left to another one since are not among them.
    """
    found: dict[str, dict[str, Record]] = {}
    for record in past.where(kernel=kernel.name, on="gpu").records:
        if record.us is None or record.clock is None or record.experiment in _NO_SHAPES_OF_INTEREST:
            continue
        if record.metrics.get("stage") == SEARCH or kernel.solves.refusal(question_of(record)):
            continue
        key = str(record.problem)
        by_clock = found.pop(key, {})  # put back at the end: the order is that of the last time
        old = by_clock.get(record.clock)
        if old is None or record.run != old.run or record.us < (old.us or 0.0):
            by_clock[record.clock] = record
        found[key] = by_clock
    last = list(found.values())[-SHAPES:]
    return sorted(last, key=lambda by_clock: question_of(next(iter(by_clock.values()))).flops)
