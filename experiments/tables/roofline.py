"""Where kernels stand under their chip's roofs: a picture of each family on each card that ran it."""

from collections.abc import Iterator, Sequence
from itertools import islice

from experiments.chart import Chart, Mark, Series
from experiments.lookup import drawn, is_peer, question_of, read_rate, stale
from lab import catalog
from lab.explain import explain
from lab.problems import Question
from lab.record import Archive, Record, is_chain
from sim.machine import MACHINES, Machine

TERA = 1e12
INTENSITY, RATE = "FLOP per byte of HBM", "TFLOP/s"  # of compulsory bytes, and of useful operations


def pictures(past: Archive) -> dict[str, Chart]:
    """For each machine and family of kernels, the dot of each kernel that lies nearest to its roof."""
    charts = {}
    for name, machine in MACHINES.items():
        found = list(_best(past.where(machine=name)))
        for family in dict.fromkeys(map(_family, found)):
            mine = [record for record in found if _family(record) == family]
            roofs = roofs_of(machine, [question_of(record) for record in mine], read_rate(past, name)[0])
            marks = (each for record in mine for each in list(dots(str(record.kernel), record))[-1:])
            title = f"{family} kernels on the {machine.title}, each where it is nearest to its roof"
            charts[f"roofline_{name}_{family}"] = Chart(title, INTENSITY, RATE, (*roofs, *marks))
    return charts


def roofs_of(machine: Machine, problems: Sequence[Question], read_rate: float | None = None) -> Iterator[Series]:
    """The roofs over these problems: HBM by the data sheet and as read (B/s), the peak and ridge of each unit."""
    intensities = [problem.flops / problem.bytes["total"] for problem in problems]
    peaks = {machine.peak(unit): unit for unit in sorted({problem.unit for problem in problems})}
    low, high = min([0.5, *intensities]) / 2, max([4096.0, *intensities]) * 2
    ridge = max(peaks) / machine.hbm_bandwidth
    for rate, what in ((machine.hbm_bandwidth, "HBM: data sheet"), (read_rate, "HBM: as read")):
        if rate:
            ends = ((ridge, ridge * rate / TERA), (low, low * rate / TERA))
            yield Series(f"{what}, {rate / TERA:.3g} TB/s", ends, "limit")
    for peak, unit in peaks.items():
        start = peak / machine.hbm_bandwidth
        yield Series(f"{unit}: {peak / TERA:,.4g} TFLOP/s", ((start, peak / TERA), (high, peak / TERA)), "limit")


def dots(label: str, record: Record) -> Iterator[Series]:
    """A record as dots: FLOP per compulsory byte, and the rates of useful operations, predicted and measured."""
    problem = question_of(record)
    times: dict[Mark, float | None] = {"predicted": record.predicted_us, "measured": record.us}
    for mark, us in times.items():
        if us:
            at = problem.flops / problem.bytes["total"], problem.flops / us * 1e6 / TERA
            yield from drawn(label, [(*at, record)], mark)


def _best(past: Archive) -> Iterator[Record]:
    """Each kernel's current record that is nearest to its roof, a measured one where there is any."""
    found: dict[str, list[Record]] = {}
    for record in past.records:
        shown = _us(record) and not is_chain(record) and "stage" not in record.metrics
        if record.kernel and not is_peer(record) and shown and not (record.check and not record.check.passed):
            found.setdefault(record.kernel, []).append(record)
    for records in found.values():
        nearest = sorted(records, key=lambda r: (r.us is not None, _share(r)), reverse=True)
        yield from islice((r for r in nearest if not stale(r)), 1)


def _share(record: Record) -> float:
    """The floor of a record's problem over its time."""
    return explain(question_of(record), MACHINES[record.machine]).roofline.floor_us / _us(record)


def _family(record: Record) -> str:
    return catalog.get(record.kernel or "").family


def _us(record: Record) -> float:
    """Microseconds, measured, else predicted; 0 where neither is known."""
    return (record.us if record.us is not None else record.predicted_us) or 0.0
