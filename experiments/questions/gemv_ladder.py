"""The GEMV ladder rung by rung: one token against a matrix of weights, each kernel beside cuBLAS and the floor."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from experiments import markdown
from experiments.chart import Bar, Bars
from experiments.lookup import best_peer, comparable, counted, is_peer, layer_of, measured, note, question_of, stale
from experiments.markdown import figure, share
from experiments.questions.ladder import climb, newest_rungs, tuned_fields
from experiments.rows import MEGA, Row, Verdict, floor_of, time_row
from experiments.running.backends import Backend
from experiments.running.jobs import Job
from lab import catalog
from lab.choice import schedule_words
from lab.problems import Linear
from lab.record import Archive, Record
from sim.errors import InputError
from sim.machine import machine

QUESTION = "What does each rung of the GEMV ladder add, and how far from cuBLAS and from the memory's floor is it?"

SHAPES = ((1024, 1024), (4096, 4096), (8192, 8192), (13824, 5120), (14336, 4096), (4096, 14336))  # n, k
CLOCK = "graph"
_HEADINGS = [
    "n x k",
    "rung",
    "L2 to SM, MB: theory",
    "simulated",
    "us in a graph",
    "of the floor",
    "of HBM's peak",
    "of cuBLAS",
]


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
        if min(self.rounds, self.seconds) < 1:
            raise InputError(f"rounds and seconds are at least 1; got {self.rounds}, {self.seconds}")

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
    """A rung on one shape, as simulated and, where it was, as measured. Shares are of 1, of the time `us`."""

    record: Record
    timed: Record | None
    peer_us: float | None

    @property
    def us(self) -> float:
        """Microseconds, measured, else predicted; infinite for a rung that failed."""
        return (self.timed.us if self.timed else self.record.predicted_us) or float("inf")

    @property
    def of_floor(self) -> float:
        return floor_of(self.record) / self.us

    @property
    def of_peak(self) -> float:
        """Of HBM's bandwidth, by the bytes that the problem needs."""
        return question_of(self.record).bytes["total"] / self.us * MEGA / machine(self.record.machine).hbm_bandwidth


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
    timed = measured(past, record, CLOCK)
    peer = best_peer(past.records, timed) if timed else None
    return Step(record, timed, peer.us if peer else None)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Of each rung: what it adds, time, shares of the floor and of HBM's peak, and how it compares."""
    for shape, climbed in steps(records, past).items():
        timed = {step.record.kernel: step.timed for step in climbed if step.timed}
        for step in climbed:
            record, found, case = step.record, step.timed, f"{shape}: {step.record.kernel}"
            row = time_row(case, "us in a graph", record, found)
            yield row
            yield Row(case, "L2 to SM, MB", _mega(record.theory), _mega(record.simulated), None, note=note(record))
            if found is None:
                continue
            us, below = step.us, timed.get(_below(record))
            after = below.us if below and comparable([below, found]) else None
            for quantity, value in (
                ("of the floor", step.of_floor),
                ("of HBM's peak", step.of_peak),
                ("of cuBLAS", step.peer_us / us if step.peer_us else None),
            ):
                if value is not None:
                    yield Row(case, quantity, None, None, value, row.source, percent=True)
            if after:
                what = "time of the rung below over its own"
                yield Row(case, what, None, None, after / us, row.source)


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
    current = [step for step in climbed if step.timed and not stale(step.timed)]
    known = [step for step in current if step.timed and step.timed.overlapping is not None]
    timed = known or current or [replace(step, timed=None, peer_us=None) for step in climbed]
    first, best = timed[0], min(timed, key=lambda step: step.us)
    beside = f" and {best.peer_us / best.us:.1%} of cuBLAS" if best.peer_us else ""
    return (
        f"{shape} climbs from {first.us:,.4g} us ({first.record.kernel}) to {best.us:.4g} us ({best.record.kernel}), "
        f"{best.of_floor:.1%} of the floor{beside} ({'measured' if best.timed else 'predicted'})"
    )


def table(past: Archive) -> str:
    """The rungs of each shape of the newest run that timed them, else that simulated them."""
    climbed = _newest(past)
    if not climbed:
        return "No records yet: `lab run gemv_ladder --record` makes them."
    found = []
    for shape, rungs in climbed.items():
        for step in rungs:
            simulating = counted(past, step.record, "simulated")
            moved, simulated = _mega(step.record.theory), _mega(simulating.simulated if simulating else None)
            peer = step.peer_us / step.us if step.peer_us else None
            shares = map(share, (step.of_floor, step.of_peak, peer))
            name = ", ".join(filter(None, (str(step.record.kernel), note(step.record))))
            found.append([shape, f"`{name}`", *map(figure, (moved, simulated, step.us)), *shares])
    sources = [step.timed.source for rungs in climbed.values() for step in rungs if step.timed]
    said = " ".join(f"{_climbed(shape, rungs)}." for shape, rungs in climbed.items())
    on = [markdown.measured_on(sources)] if sources else []
    return "\n\n".join([markdown.table(_HEADINGS, found), said, *on])


def pictures(past: Archive) -> dict[str, Bars]:
    """The rate at which each rung of the largest shape reads its bytes, and cuBLAS beside the fastest."""
    name = _name(*max(SHAPES, key=lambda shape: shape[0] * shape[1]))
    rungs = [step for step in _newest(past).get(name, ()) if step.timed]
    if not rungs:
        return {}
    rate = question_of(rungs[0].record).bytes["total"] / MEGA  # us to TB/s
    bars = [Bar(str(step.record.kernel), (("the lab", rate / step.us),)) for step in rungs]
    beside = [step.peer_us for step in rungs if step.peer_us]
    if beside:
        bars.append(Bar("cuBLAS", (("cuBLAS", rate / beside[-1]),)))
    title = f"The GEMV ladder in bf16, {name}, on {rungs[-1].timed.source if rungs[-1].timed else ''}"
    return {"gemv_ladder": Bars(title, "TB/s of the bytes that the layer needs", tuple(bars))}


def _newest(past: Archive) -> dict[str, list[Step]]:
    """The newest rungs of each shape that has any."""
    found: dict[str, list[Step]] = {}
    every = [r for r in past.where(experiment="gemv_ladder").records if "rung" in r.metrics or is_peer(r)]
    for n, k in SHAPES:
        here = [r for r in every if (r.problem or {}).get("n") == n and (r.problem or {}).get("k") == k]
        found |= steps(newest_rungs([r for r in here if r.clock in (CLOCK, None)]), past)
    return found
