"""The GEMM ladder rung by rung: what each kernel adds to the one before it, and what that does to bytes and time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from experiments import markdown
from experiments.chart import Bar, Bars
from experiments.lookup import CLOCKS, best_peer, counted, is_peer, layer_of, measured, note
from experiments.markdown import figure, share
from experiments.questions.ladder import climb, newest_rungs, tuned_fields
from experiments.rows import MEGA, Row, Verdict, counters_of, timed_by
from experiments.running.backends import Backend
from experiments.running.jobs import Job
from experiments.words import spell
from lab import catalog
from lab.choice import outgrown, schedule_words
from lab.kernel import Kernel
from lab.problems import Linear
from lab.record import Archive, Record
from sim.errors import InputError
from sim.machine import Machine, machine

QUESTION = "What does each rung of the GEMM ladder add, and how far from cuBLAS and from the chip's peak is it?"

LADDERS = ("fp32", "bf16", "fp8")
CLOCK = "cold"
RASTER = "with a raster"
NO_RASTER = "without a raster"
TERA = 1e12
_HEADINGS = [
    "rung",
    "adds",
    "L2 to SM, MB: theory",
    "simulated",
    "counters",
    "HBM, MB: counters",
    "TFLOP/s",
    "of cuBLAS",
    "of the peak at the clock held",
]


@dataclass(frozen=True)
class Rung:
    """A kernel at a place of a ladder; `words` are its schedule's, `note` tells it from another rung of its kernel."""

    kernel: Kernel
    problem: Linear
    words: str
    note: str = ""


@dataclass(frozen=True)
class Options:
    """All ladders, or the one named by `only` (fp32, bf16, fp8), at one shape.

    `raster` is the kernel that is shown with its tiles in groups and without; `counters` reads hardware counters too,
    with Nsight Compute. What has not begun after `seconds` is skipped.
    """

    m: int = 4096
    n: int = 4096
    k: int = 4096
    only: str = "all"
    raster: str = "gemm_cluster"
    rounds: int = 20
    seconds: int = 400
    counters: bool = False

    def __post_init__(self) -> None:
        if self.only not in ("all", *LADDERS):
            raise InputError(f"only is all, {', '.join(LADDERS)}; got {self.only!r}")
        if min(self.rounds, self.seconds) < 1:
            raise InputError(f"rounds and seconds are at least 1; got {self.rounds}, {self.seconds}")
        catalog.get(self.raster)

    @property
    def ladders(self) -> tuple[str, ...]:
        return LADDERS if self.only == "all" else (self.only,)


def rungs(ladder: str, options: Options, target: Machine) -> list[Rung]:
    """The rungs of one ladder from the ground up: every kernel that takes its problem, after those it improves on.

    In fp8 only the last rungs are shown: those before them differ from bf16's by the format alone.
    """
    shape = Linear(options.m, options.n, options.k)
    if ladder == "fp8":
        whole = replace(shape, weights="fp8", activations="fp8", scales="tensor")
        modes = (replace(whole, accumulate=mode) for mode in ("fast", "float32"))
        return [rung for problem in modes for rung in _rungs(problem, options, target, top=True)]
    return _rungs(Linear(options.m, options.n, options.k, ladder), options, target, top=False)


def _rungs(problem: Linear, options: Options, target: Machine, top: bool) -> list[Rung]:
    kernels = climb(problem, target, "gemm")
    gone = outgrown(kernels) if top else set()
    found: list[Rung] = []
    for kernel in kernels:
        if kernel.name in gone:
            continue
        fields = tuned_fields(kernel, problem, target)
        mode = problem.accumulate if problem.weights == "fp8" else ""
        if kernel.name == options.raster and problem.weights == "bf16":
            found.append(Rung(kernel, problem, schedule_words({**fields, "group_m": 1}), NO_RASTER))
            mode = RASTER
        found.append(Rung(kernel, problem, schedule_words(fields), mode))
    return found


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Each rung beside its peers on the cold clock, in a run of its own: a slow rung lets the card cool."""
    jobs = [
        Job(
            kernel=rung.kernel.name,
            problem=rung.problem.as_dict(),
            schedules=(rung.words,),
            clocks=(CLOCK,),
            rounds=options.rounds,
            experiment="gemm_ladder",
            facts={"ladder": ladder, "rung": number, "note": rung.note},
        )
        for ladder in options.ladders
        for number, rung in enumerate(rungs(ladder, options, backend.machine))
    ]
    yield from backend.timed(jobs, options.seconds)
    if options.counters:
        yield from backend.counted(jobs)


@dataclass(frozen=True)
class Step:
    """A rung as its table shows it: bytes in megabytes, shares of 1; None where a source has no figure.

    `of_peak` is of the tensor cores' or CUDA cores' rate at the SM clock that the card held.
    """

    name: str
    problem: Linear
    adds: str
    l2_theory: float | None
    l2_simulated: float | None
    l2_counted: float | None
    hbm_counted: float | None
    tflops: float | None
    of_peer: float | None
    of_peak: float | None
    timed: Record | None
    note: str


def steps(records: Sequence[Record], past: Archive) -> dict[str, list[Step]]:
    """The rungs of each ladder among the records of a run, in their order, timed in this run or in the newest one."""
    every = (*past.records, *records)
    found: dict[str, list[Step]] = {}
    for record in records:
        if "ladder" in record.metrics and not is_peer(record) and record.schedule is not None:
            found.setdefault(str(record.metrics["ladder"]), []).append(_step(record, past, every))
    return found


def _step(record: Record, past: Archive, every: Sequence[Record]) -> Step:
    simulating = counted(past, record, "simulated")
    simulated = record.simulated or (simulating.simulated if simulating else None) or {}
    counters = counters_of(counted(past, record))
    hbm = [counters[name] for name in ("hbm_read_bytes", "hbm_write_bytes") if name in counters]
    chip, problem = machine(record.machine), layer_of(record)
    timed = record if record.us else measured(past, record, CLOCK)
    peer = best_peer(every, timed) if timed else None
    rate = problem.flops / timed.us * 1e6 if timed and timed.us else None
    held = (timed.clocks or {}).get("sm") if timed else None  # MHz
    names = [record.kernel, record.metrics["note"]]
    return Step(
        name=", ".join(str(name) for name in names if name),
        problem=problem,
        adds=catalog.get(record.kernel).adds if record.kernel in catalog.names() else "",
        l2_theory=_mega((record.theory or {}).get("l2_to_sm_bytes")),
        l2_simulated=_mega(simulated.get("l2_to_sm_bytes")),
        l2_counted=_mega(counters.get("l2_to_sm_bytes")),
        hbm_counted=_mega(sum(hbm)) if hbm else None,
        tflops=rate / TERA if rate else None,
        of_peer=peer.us / timed.us if peer and peer.us and timed and timed.us else None,
        of_peak=rate / (chip.peak(problem.activations) * held * MEGA / chip.clock_hz) if rate and held else None,
        timed=timed,
        note=note(record, timed),
    )


def _mega(nbytes: float | None) -> float | None:
    return None if nbytes is None else nbytes / MEGA


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Bytes, rate and shares of each rung."""
    for ladder, climbed in steps(records, past).items():
        for step in climbed:
            case = f"{ladder}: {step.name}"
            yield Row(case, "L2 to SM, MB", step.l2_theory, step.l2_simulated, step.l2_counted)
            if step.hbm_counted is not None:
                yield Row(case, "HBM, MB", None, None, step.hbm_counted)
            if step.timed is None:
                continue
            yield timed_by(Row(case, f"time {CLOCKS[CLOCK]}, us", None, None, None, note=step.note), step.timed)
            for quantity, value in (("of cuBLAS", step.of_peer), ("of the peak at the clock held", step.of_peak)):
                if value is not None:
                    yield Row(case, quantity, None, None, value, step.timed.source, percent=True)
            yield Row(case, "TFLOP/s", None, None, step.tflops, step.timed.source)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """Where each ladder begins and how far it leads; the bytes of every rung are those of its closed form."""
    ladders = steps(records, past)
    differing = [
        step.name
        for climbed in ladders.values()
        for step in climbed
        if step.l2_simulated is not None and step.l2_simulated != step.l2_theory
    ]
    climbs = []
    for ladder, climbed in ladders.items():
        timed = [step for step in climbed if step.of_peer is not None]
        if timed:
            top = max(timed, key=lambda step: step.of_peer or 0.0)
            ends = [f"{step.of_peer:.1%} of cuBLAS ({step.name})" for step in (timed[0], top)]
            climbs.append(f"{ladder} climbs from {ends[0]} to {ends[1]}")
        else:
            climbs.append(f"{ladder} has {len(climbed)} rungs, none of them timed yet")
    equal = f"bytes differ from theory at {', '.join(differing)}" if differing else "simulated bytes equal theory"
    return Verdict(not differing and bool(ladders), f"{'; '.join(climbs)}; {equal}.")


def table(past: Archive) -> str:
    """The rungs of each ladder of the newest run that timed it, else that simulated it."""
    parts = []
    for name, climbed in _climbed(past).items():
        rows = (
            [
                f"`{', '.join(filter(None, (step.name, step.note)))}`",
                step.adds,
                *map(figure, (step.l2_theory, step.l2_simulated, step.l2_counted, step.hbm_counted, step.tflops)),
                share(step.of_peer),
                share(step.of_peak),
            ]
            for step in climbed
        )
        sources = sorted({step.timed.source for step in climbed if step.timed})
        on = f", on {'; '.join(sources)}" if sources else ", not timed yet"
        parts.append(f"{name}, {_shape(climbed[0])}{on}:\n\n{markdown.table(_HEADINGS, rows)}")
    return "\n\n".join(parts) or "No records yet: `lab run gemm_ladder --record` makes them."


def pictures(past: Archive) -> dict[str, Bars]:
    """The rate of each rung of the bf16 ladder, and of cuBLAS beside the last."""
    climbed = [step for step in _climbed(past).get("bf16", ()) if step.tflops]
    if not climbed:
        return {}
    bars = [Bar(step.name, (("the lab", step.tflops or 0.0),)) for step in climbed]
    last = climbed[-1]
    if last.of_peer:
        bars.append(Bar("cuBLAS", (("cuBLAS", (last.tflops or 0.0) / last.of_peer),)))
    card = last.timed.source if last.timed else ""
    return {"gemm_ladder": Bars(f"The GEMM ladder in bf16, {_shape(last)}, on {card}", "TFLOP/s", tuple(bars))}


def _climbed(past: Archive) -> dict[str, list[Step]]:
    """The newest rungs of each ladder that has any."""
    found: dict[str, list[Step]] = {}
    for name in LADDERS:
        every = [r for r in past.where(experiment="gemm_ladder").records if r.metrics.get("ladder") == name]
        found |= steps(newest_rungs(every), past)
    return found


def _shape(step: Step) -> str:
    return spell({name: getattr(step.problem, name) for name in ("m", "n", "k")})
