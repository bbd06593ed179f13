"""The GEMV ladder rung by rung: one token against a matrix of weights, each kernel beside cuBLAS and the floor."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from experiments.questions.ladder import climb, tuned_fields
from experiments.rows import MEGA, Row, Verdict, best_peer, is_peer, layer_of, measured, question_of
from experiments.running.backends import Backend
from experiments.running.jobs import Job
from lab import catalog
from lab.choice import schedule_words
from lab.explain import explain
from lab.problems import Linear
from lab.record import Archive, Record
from sim.errors import InputError
from sim.machine import machine

QUESTION = "What does each rung of the GEMV ladder add, and how far from cuBLAS and from the memory's floor is it?"

SHAPES = ((1024, 1024), (4096, 4096), (8192, 8192), (13824, 5120), (14336, 4096), (4096, 14336))  # n, k
CLOCK = "graph"


@dataclass(frozen=True)
class Options:
    """All shapes, or the one named by `only`, such as 4096x4096.

    `counters` reads hardware counters too, with Nsight Compute. What has not begun after `seconds` is skipped.
    """

    only: str = "all"
    weights: str = "bf16"
    rounds: int = 20
    seconds: int = 540
    counters: bool = False

    def __post_init__(self) -> None:
        names = [_name(*shape) for shape in SHAPES]
        if self.only not in ("all", *names):
            raise InputError(f"only is all, {', '.join(names)}; got {self.only!r}")

    @property
    def problems(self) -> list[Linear]:
        return [Linear(1, n, k, self.weights) for n, k in SHAPES if self.only in ("all", _name(n, k))]


def _name(n: int, k: int) -> str:
    return f"{n}x{k}"


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Each rung beside its peers in a graph, whose copies of the weights are more than L2 holds."""
    jobs = [
        Job(
            kernel=kernel.name,
            problem=problem.as_dict(),
            schedules=(schedule_words(tuned_fields(kernel, problem, backend.machine)),),
            clocks=(CLOCK,),
            rounds=options.rounds,
            experiment="gemv_ladder",
            facts={"rung": number},
        )
        for problem in options.problems
        for number, kernel in enumerate(climb(problem, backend.machine, "gemv"))
    ]
    yield from backend.timed(jobs, options.seconds)
    if options.counters:
        yield from backend.counted(jobs)


@dataclass(frozen=True)
class Step:
    """A rung on one shape. `us` is measured, else predicted; shares are of 1, of the time by which `us` is."""

    record: Record
    us: float
    floor_us: float
    of_peak: float  # of HBM's bandwidth, by the bytes that the problem needs
    peer_us: float | None
    source: str  # card and commit; empty where predicted

    @property
    def of_floor(self) -> float:
        return self.floor_us / self.us


def steps(records: Sequence[Record], past: Archive) -> dict[str, list[Step]]:
    """The rungs of each shape among the records of a run, in their order, timed in this run or in the newest one."""
    every = Archive((*past.records, *records))
    found: dict[str, dict[str, Step]] = {}
    for record in records:
        if "rung" in record.metrics and record.kernel and not is_peer(record):
            problem = layer_of(record)
            climbed = found.setdefault(_name(problem.n, problem.k), {})
            climbed.setdefault(record.kernel, _step(record, every))
    return {shape: list(climbed.values()) for shape, climbed in found.items()}


def _step(record: Record, past: Archive) -> Step:
    problem, chip = question_of(record), machine(record.machine)
    timed = measured(past, record, CLOCK)
    us = (timed.us if timed else record.predicted_us) or float("inf")  # inf: a rung that failed
    peer = best_peer(past.records, timed) if timed else None
    return Step(
        record=record,
        us=us,
        floor_us=explain(problem, chip).roofline.floor_us,
        of_peak=problem.bytes["total"] / us * MEGA / chip.hbm_bandwidth,
        peer_us=peer.us if peer else None,
        source=timed.source if timed else "",
    )


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Of each rung: what it adds, time, shares of the floor and of HBM's peak, and how it compares."""
    for shape, climbed in steps(records, past).items():
        times = {step.record.kernel: step.us for step in climbed if step.source}
        for step in climbed:
            record, case = step.record, f"{shape}: {step.record.kernel}"
            us = step.us if step.source else None
            yield Row(case, "us in a graph", step.floor_us, record.predicted_us, us, step.source)
            yield Row(case, "L2 to SM, MB", _mega(record.theory), _mega(record.simulated), None)
            if us is None:
                continue
            after = times.get(_below(record))
            for quantity, value in (
                ("of the floor", step.of_floor),
                ("of HBM's peak", step.of_peak),
                ("cuBLAS's time over its own", step.peer_us / us if step.peer_us else None),
                ("time of the rung below over its own", after / us if after else None),
            ):
                if value is not None:
                    yield Row(case, quantity, None, None, value, step.source)


def _below(record: Record) -> str | None:
    """The kernel that a record's kernel improves on; none where the catalog no longer has that."""
    return catalog.get(record.kernel).solves.after if record.kernel in catalog.names() else None


def _mega(counts: Mapping[str, float | None] | None) -> float | None:
    moved = (counts or {}).get("l2_to_sm_bytes")
    return None if moved is None else moved / MEGA


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """Where each shape's ladder begins and how near to the floor it leads; simulated bytes are those of theory."""
    ladders = steps(records, past)
    differing = [
        f"{step.record.kernel} at {shape}"
        for shape, climbed in ladders.items()
        for step in climbed
        if step.record.simulated is not None and _mega(step.record.simulated) != _mega(step.record.theory)
    ]
    climbs = [_climbed(shape, climbed) for shape, climbed in ladders.items()]
    equal = f"bytes differ from theory at {', '.join(differing)}" if differing else "simulated bytes equal theory"
    return Verdict(not differing and bool(ladders), f"{'; '.join([*climbs, equal])}.")


def _climbed(shape: str, climbed: Sequence[Step]) -> str:
    timed = [step for step in climbed if step.source] or climbed
    first, best = timed[0], min(timed, key=lambda step: step.us)
    beside = f" and {best.peer_us / best.us:.1%} of cuBLAS" if best.peer_us else ""
    return (
        f"{shape} climbs from {first.us:,.4g} us ({first.record.kernel}) to {best.us:.4g} us ({best.record.kernel}), "
        f"{best.of_floor:.1%} of the floor{beside} ({'measured' if best.source else 'predicted'})"
    )
