"""Every kernel: what it adds, and its newest times beside the floor, the prediction and the best peer."""

from collections.abc import Iterator

from experiments import markdown
from experiments.lookup import CLOCKS, IN_DOUBT, best_peer, disputed, measured, note, pace, question_of
from experiments.markdown import figure
from experiments.rows import floor_of, size_of
from lab import catalog
from lab.kernel import Kernel
from lab.record import Archive, Record, is_chain

SHAPES = 4  # of each kernel
_NO_SHAPES_OF_INTEREST = ("fp8_error",)  # a narrow layer that is quick to check
_LAUNCHES = {True: "overlapping", False: "plain", None: "-"}
_HEADINGS = ["kernel", "adds", "problem", "launches", "floor, us", "predicted, us"]
_HEADINGS += [heading for name in CLOCKS.values() for heading in (f"{name}, us", "x best peer")]


def table(past: Archive) -> str:
    """Every kernel that was timed, what it adds, and its newest times on the problems that it was last timed on.

    A row is of one machine, schedule and way to launch. A peer's time that others of its own times dispute counts not.
    """
    rows = []
    for kernel in catalog.kernels():
        head = [f"`{kernel.name}`", kernel.adds]
        for record in _newest(past, kernel):
            problem = size_of(record) + (f" ({doubt})" if (doubt := note(record)) else "")
            row = [*head, problem, _LAUNCHES[record.overlapping], figure(floor_of(record)), figure(record.predicted_us)]
            found = {clock: measured(past, record, clock) for clock in CLOCKS}
            for timed in found.values():
                row += [figure(timed.us if timed else None), _ratio(past, timed) if timed else "-"]
            rows.append([*row, "; ".join(dict.fromkeys(timed.source for timed in found.values() if timed))])
            head = ["", ""]
    return markdown.table([*_HEADINGS, "on"], rows)


def _ratio(past: Archive, timed: Record) -> str:
    """The best peer's time over a record's, in its run."""
    peer = best_peer(past.records, timed)
    if peer is None or not peer.us or not timed.us:
        return "-"
    return IN_DOUBT if disputed(past.records, peer) else f"{peer.us / timed.us:.2f}"


def _newest(past: Archive, kernel: Kernel) -> list[Record]:
    """The fastest schedule of the newest run for each of the last few problems, the smallest work first.

    On each machine, overlapping and plain launches apart. Problems that the kernel has left to another one since are
    not among them.
    """
    found: dict[str, Record] = {}
    for record in _timed(past, kernel):
        key = f"{record.machine} {record.problem} {record.overlapping}"
        old = found.pop(key, record)  # put back at the end: the order is that of the last time
        found[key] = record if record.run != old.run or (record.us or 0.0) < (old.us or 0.0) else old
    return sorted(list(found.values())[-SHAPES:], key=lambda record: question_of(record).flops)


def _timed(past: Archive, kernel: Kernel) -> Iterator[Record]:
    for record in past.where(kernel=kernel.name, on="gpu").records:
        shown = record.us is not None and record.clock in CLOCKS and pace(record) == "sustained"
        if not shown or is_chain(record) or record.experiment in _NO_SHAPES_OF_INTEREST:
            continue
        if "stage" not in record.metrics and not kernel.solves.refusal(question_of(record)):
            yield record
