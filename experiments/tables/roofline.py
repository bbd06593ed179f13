"""The roofs of each machine with every kernel as a dot."""

from collections.abc import Iterator

from experiments.lookup import STALE, is_peer, question_of, read_rate, stale
from experiments.rows import size_of
from experiments.tables.kernels import SHAPES
from experiments.tables.roofline_svg import Dot, roofline_svg
from lab.record import Archive, Record, is_chain
from lab.tuned import SEARCH
from sim.machine import MACHINES


def table(past: Archive) -> str:
    """Links to the rooflines."""
    links = [
        f"![Roofline of the {MACHINES[name].title}](experiments/records/roofline-{name}.svg)"
        for name, _ in charts(past)
    ]
    return "\n\n".join(links) or "No records yet: `lab run two_machines --record` makes them."


def charts(past: Archive) -> Iterator[tuple[str, str]]:
    """(machine, SVG) for each machine with records of kernels."""
    for name, machine in MACHINES.items():
        dots = list(_dots(past.where(machine=name)))
        if dots:
            yield name, roofline_svg(machine, dots, read_rate(past, name)[0])


def _dots(past: Archive) -> Iterator[Dot]:
    """Of each kernel the last few problems: the newest measured dot of each, else the newest predicted one."""
    found: dict[str, dict[str, Record]] = {}
    for record in past.records:
        if not record.kernel or is_peer(record) or (record.check and not record.check.passed):
            continue
        if not _us(record) or record.metrics.get("stage") == SEARCH or is_chain(record):
            continue
        shown = found.setdefault(record.kernel, {})
        old = shown.pop(str(record.problem), record)  # put back at the end: the order is that of the last time
        shown[str(record.problem)] = old if old.us is not None and record.us is None else record
    for shown in found.values():
        yield from map(_dot, list(shown.values())[-SHAPES:])


def _dot(record: Record) -> Dot:
    problem = question_of(record)
    label = size_of(record) + (f" ({STALE})" if stale(record) else "")
    rate = problem.flops / _us(record) * 1e6
    return Dot(record.kernel or "", label, problem.flops / problem.bytes["total"], rate, record.us is not None)


def _us(record: Record) -> float:
    """Microseconds, measured, else predicted; 0 where neither is known."""
    return (record.us if record.us is not None else record.predicted_us) or 0.0
