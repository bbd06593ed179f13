"""The roofs of each machine with every kernel as a dot."""

from collections.abc import Iterator

from experiments.questions.ceilings import read_rate
from experiments.rows import is_peer, question_of, size_of
from experiments.tables.kernels import SHAPES
from experiments.tables.roofline_svg import Dot, roofline_svg
from lab.record import Archive
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
    found: dict[str, dict[str, Dot]] = {}
    for record in past.records:
        if not record.kernel or is_peer(record) or (record.check and not record.check.passed):
            continue
        us = record.us if record.us is not None else record.predicted_us
        if not us or record.metrics.get("stage") == SEARCH:
            continue
        key, measured = str(record.problem), record.us is not None
        dots = found.setdefault(record.kernel, {})
        old = dots.pop(key, None)  # put back at the end: the order is that of the last time
        if old and old.measured and not measured:
            dots[key] = old
            continue
        problem = question_of(record)
        intensity = problem.flops / problem.bytes["total"]
        dots[key] = Dot(record.kernel, size_of(record), intensity, problem.flops / us * 1e6, measured)
    for dots in found.values():
        yield from list(dots.values())[-SHAPES:]
