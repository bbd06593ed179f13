"""Two GPUs three ways on the same requests: prefill beside decode, two replicas, one engine on both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.chart import Chart, Series
from experiments.markdown import three_columns
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
from experiments.running.fleets import NEEDS_TWO, pages_of
from experiments.served import between_decodes, figure, job, lengths, newest, served_rows
from lab.problems.model import model_named
from lab.record import Archive, Record
from lab.serving.workload import Workload
from sim.errors import InputError

QUESTION = "What is prefill on a GPU of its own worth, against two replicas and against two GPUs for each step?"

# Each with its budget of a step that mixes prompts with decodes, in ms: chunked prefill, of usual and of small chunks.
SETUPS = {
    "1 prefill + 1 decode": ("disaggregate=1:1", 20.0),
    "2 replicas": ("replicas=2", 20.0),
    "tensor parallel": ("tensor_parallel=2", 20.0),
    "2 replicas, small chunks": ("replicas=2", 10.0),
    "tensor parallel, small chunks": ("tensor_parallel=2", 10.0),
}
SLO = {"ttft": 500.0, "tpot": 25.0}  # ms
KEPT = 0.9  # the share of requests that have to be within it at the knee
SMOOTH = 12.0  # ms that 99% of gaps are within, where answers have to be smooth
LONG = 8192
RATES = {"azure-conv": (16.0, 24.0, 32.0, 40.0, 48.0, 56.0, 64.0), "azure-code": (8.0, 12.0, 16.0, 20.0, 24.0, 28.0)}
STALLS = "8k prompts into decodes"
SHOWN = ("median_ttft_ms", "p99_itl_ms", "max_itl_ms", "push_exposed_us", "push_share")


@dataclass(frozen=True)
class Options:
    """`requests` of two kinds of traffic at rates up to beyond each set-up's knee, and 8k prompts into 64 decodes.

    `only` is how the names of loads begin, where not all are asked for.
    """

    model: str = "llama-3-8b"
    requests: int = 200
    only: str = ""
    seconds: int = 200

    def __post_init__(self) -> None:
        model_named(self.model)
        names = [*(f"{dataset}, {rate:g} a second" for dataset, rates in RATES.items() for rate in rates), STALLS]
        if not any(name.startswith(self.only) for name in names):
            raise InputError(f"the loads are {'; '.join(names)}; got {self.only!r}")
        if self.requests < 1:
            raise InputError(f"requests are at least 1; got {self.requests}")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Each load by each set-up; predicted, on however many GPUs this runs."""
    if backend.on == "gpu":
        raise InputError(NEEDS_TWO)
    model, found = model_named(options.model), []
    loads = {
        f"{dataset}, {rate:g} a second": (dataset, rate, lengths(Workload(dataset, options.requests, rate)))
        for dataset, rates in RATES.items()
        for rate in rates
    }
    loads[STALLS] = (STALLS, 1.0, sorted(between_decodes() * 2))
    for load, (traffic, rate, requests) in loads.items():
        if not load.startswith(options.only):
            continue
        for name, (gpus, itl_ms) in SETUPS.items():
            policy = {"itl_us": 1e3 * itl_ms, "pages": pages_of(gpus, model, backend.machine)}
            facts = {"setup": name, "traffic": traffic, "requests_per_s": rate}
            more = {"goodput": SLO, "gpus": gpus, "facts": facts, "long": LONG if traffic == STALLS else 0}
            found.append(job("disaggregation", f"{load}; {name}", model, requests, policy=policy, **more))
    yield from backend.served(found, options.seconds)


def kept(record: Record) -> float:
    """The share of a run's requests within the limits."""
    served = figure(record, "request_throughput")
    return (figure(record, "request_goodput") or 0.0) / served if served else 0.0


def knees(records: Sequence[Record], traffic: str, smooth: bool = False) -> dict[str, float]:
    """The highest rate at which a set-up keeps 90% of requests within the limits, by set-up; 0 where none does.

    Where answers have to be `smooth`, 99% of all gaps are below 12 ms there too.
    """
    found = dict.fromkeys(SETUPS, 0.0)
    for record in records:
        even = not smooth or (figure(record, "p99_itl_ms") or 0.0) <= SMOOTH
        if record.metrics.get("traffic") == traffic and even and kept(record) >= KEPT:
            name = str(record.metrics["setup"])
            found[name] = max(found[name], figure(record, "requests_per_s") or 0.0)
    return found


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (all is of one run)
    """The knees, then the figures of the load at the lowest of them, and of the long prompts."""
    shown = [r for r in records if r.metrics.get("traffic") == STALLS]
    for traffic in RATES:
        found = knees(records, traffic)
        for name, rate in found.items():
            yield Row(f"{traffic}; {name}", "requests a second at its knee", None, rate, None)
        for name, rate in knees(records, traffic, smooth=True).items():
            yield Row(f"{traffic}; {name}", f"and with gaps below {SMOOTH:g} ms", None, rate, None)
        lowest = min((rate for rate in found.values() if rate), default=0.0)
        shown += [r for r in records if r.metrics.get("traffic") == traffic and figure(r, "requests_per_s") == lowest]
    for record in shown:
        yield from served_rows([record], SHOWN)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """Who keeps the limits longest, who has the shortest gaps, and what a push costs."""
    said = []
    for traffic in RATES:
        for smooth, what in ((False, ""), (True, f" with gaps below {SMOOTH:g} ms")):
            found = {name: rate for name, rate in knees(records, traffic, smooth).items() if rate}
            if found:
                best = max(found.values())
                names = " and ".join(name for name, rate in found.items() if rate == best)
                others = ", ".join(f"{name} {rate:g}" for name, rate in found.items() if rate != best)
                least = "at least" if best == max(RATES[traffic]) else "at"
                said.append(f"{traffic}{what}: {names} {least} {best:g} a second{f' ({others})' if others else ''}")
    if not said:
        return Verdict(None, "No set-up keeps 90% of its requests within the limits at any rate.")
    shares = [share for r in records if (share := figure(r, "push_share")) is not None]
    pushed = f" Pushes are {min(shares):.1%} to {max(shares):.1%} of the time that prefill computes." if shares else ""
    return Verdict(None, f"The highest knee (predicted): {'; '.join(said)}.{pushed}")


def pictures(past: Archive) -> dict[str, Chart]:
    """The share of requests within the limits against the rate, for each traffic."""
    records, found = newest(past, "disaggregation"), {}
    setups = [name for name, (_, itl_ms) in SETUPS.items() if itl_ms > SMOOTH]
    for traffic in RATES:
        series = []
        for name in setups:
            mine = [r for r in records if r.metrics.get("traffic") == traffic and r.metrics.get("setup") == name]
            points = sorted((figure(r, "requests_per_s") or 0.0, 100 * kept(r)) for r in mine)
            if points:
                series.append(Series(name, points, "predicted"))
        if series:
            title = (
                f"{traffic} on two GPUs: requests within {SLO['ttft']:g} ms to the first token, {SLO['tpot']:g} a token"
            )
            found[f"disaggregation_{traffic}"] = Chart(title, "requests a second", "% of requests", tuple(series), "")
    return found


def table(past: Archive) -> str:
    """The newest run."""
    found = newest(past, "disaggregation")
    if not found:
        return "No records yet: `lab run disaggregation --record` makes them."
    return three_columns(list(rows(found, past)), verdict(found, past).sentence)
