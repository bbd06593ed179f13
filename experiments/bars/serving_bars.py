"""The serving loop against its bars: host work, gaps, throughput, stalls of prompts, and what was predicted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from experiments.lookup import question_of
from experiments.markdown import three_columns
from experiments.rows import Row, Verdict, untimed
from experiments.running.backends import Backend
from experiments.running.jobs import ServeJob, StepJob, problem_of
from experiments.served import (
    DECODES,
    LONG,
    Case,
    between_decodes,
    cases,
    figure,
    job,
    lengths,
    served_rows,
    words,
)
from lab.problems import MODELS, Model
from lab.record import Archive, Record
from lab.serving.workload import Workload
from sim.errors import InputError

QUESTION = "Does one scheduler keep a GPU busy, its users' tokens even, and its predictions true?"

LLAMA, SMALL = MODELS["llama-3-8b"], MODELS["smollm2-135m"]
NANO = Workload(num_prompts=256, input_len=562, output_len=562, range_ratio=0.822)  # 100 to 1,024 tokens, as nano-vllm
FEW = {"max_rows": 2 * DECODES}  # a policy for few sequences: it has fewer buckets
BUDGET_MS = 19.5  # of a step, held against the bar; `lab run chunked_prefill` has chunks of one size
CONTEXT = 1024  # tokens of each sequence where the schedules of steps are looked for
RATE = 16.0  # requests a second of conversations, below 80% of the knee; `lab run serving_loop` has others
WITHIN = {"mean_itl_ms": 0.05, "p99_itl_ms": 0.10, "median_ttft_ms": 0.10, "p99_ttft_ms": 0.20}
SHOWN = (
    "output_throughput",
    "median_ttft_ms",
    "p99_ttft_ms",
    "mean_itl_ms",
    "p99_itl_ms",
    "max_itl_ms",
    "long_median_ttft_ms",
    "host_us",
    "p99_host_us",
    "idle_fraction",
    "kv_waste",
)


def _job(case: str, model: Model, requests: Sequence[tuple[float, int, int]], **more: Any) -> ServeJob:
    return job("serving_bars", case, model, requests, **more)


def _host() -> list[ServeJob]:
    found = []
    for rows in (64, 256):
        requests = [(0.0, 64, 512)] * rows
        found.append(_job(f"host work, {rows} sequences", SMALL, requests, facts={"rows": rows}))
    return found


def _gaps() -> list[ServeJob]:
    return [_job("batch 32, 8k outputs", LLAMA, [(0.0, 128, 8192)] * 32, policy=FEW)]


def _first_gaps() -> list[ServeJob]:
    """The beginning of that, whose steps are the shortest, so that gaps take the most of them."""
    return [_job("batch 32, first 512 of 8k outputs", LLAMA, [(0.0, 128, 512)] * 32, policy=FEW)]


def _nano() -> list[ServeJob]:
    return [_job("nano-vllm's workload, 8B", LLAMA, lengths(NANO))]


def _small() -> list[ServeJob]:
    return [_job("nano-vllm's workload, 135M", SMALL, lengths(NANO), policy={"max_tokens": 4096})]


def _stall() -> list[ServeJob]:
    """Sequences that decode all the while, and a long prompt a second: at once, and as far as an ITL budget allows."""
    found = []
    for budget, tokens, how in ((BUDGET_MS, 1024, f"{BUDGET_MS} ms a step"), (0.0, LONG + 2 * DECODES, "at once")):
        policy = {**FEW, "max_tokens": tokens, "itl_us": 1e3 * budget}
        name, facts = f"{LONG:,} tokens into {DECODES} decodes, {how}", {"budget_ms": budget}
        requests = between_decodes(450, 2)
        found.append(_job(name, LLAMA, requests, policy=policy, long=LONG, facts=facts, attribute=True))
    return found


def _load() -> list[ServeJob]:
    workload = Workload("azure-conv", 100, RATE, max_length=8192)
    return [_job(f"conversations, {RATE:g} a second", LLAMA, lengths(workload), policy=FEW, attribute=True)]


def _knee() -> list[ServeJob]:
    """More conversations a second than can be served."""
    workload = Workload("azure-conv", 320, 48.0, max_length=8192)
    return [_job("conversations beyond the knee", LLAMA, lengths(workload))]


PARTS = {
    "host": _host,
    "small": _small,
    "nano": _nano,
    "gaps": _gaps,
    "first-gaps": _first_gaps,
    "load": _load,
    "knee": _knee,
    "stall": _stall,
}


@dataclass(frozen=True)
class Options:
    """`part` is one of PARTS, or several with commas between, measured `runs` times; what is late is skipped.

    Late is what has not begun after `seconds`. Loops of one model and policy that follow one another are set up once.
    The best schedules of their steps' parts, of one token a row, are looked for first, in `tune` seconds.
    """

    part: str = "load"
    runs: int = 1
    seconds: int = 300
    tune: int = 0

    def __post_init__(self) -> None:
        if not set(self.part.split(",")) <= set(PARTS):
            raise InputError(f"part is {', '.join(PARTS)}, or some with commas between; got {self.part!r}")
        if min(self.runs, self.seconds) < 1 or self.tune < 0:
            raise InputError(f"runs and seconds are at least 1, tune at least 0; got {self}")


def jobs(parts: str) -> list[ServeJob]:
    """The loops of parts with commas between."""
    return [structs.replace(job, facts={"part": one, **job.facts}) for one in parts.split(",") for job in PARTS[one]()]


def steps(parts: str) -> list[StepJob]:
    """The steps of one token a row that loops of these parts have the most of: the most rows first, each half."""
    found = {(problem_of(job.problem), n) for job in jobs(parts) for n in _halves(job.policy["max_rows"])}
    order = sorted(found, key=lambda one: (-one[1], str(one[0])))
    asked = [replace(model, batch=rows, context=CONTEXT) for model, rows in order]
    how: dict[str, Any] = {"experiment": "serving_bars", "facts": {"tuned": True}, "peers": False}
    return [StepJob(problem=model.as_dict(), **how) for model in asked]


def _halves(rows: int) -> list[int]:
    return [rows >> i for i in range(rows.bit_length())]


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Each loop of a part, and what is predicted of it."""
    if options.tune:
        yield from backend.tuned_in_steps(steps(options.part), options.tune)
    asked = [job for job in jobs(options.part) for _ in range(options.runs if backend.on == "gpu" else 1)]
    yield from backend.served(asked, options.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (all is of one run)
    """Each loop's figures, predicted and measured, and by what factor its steps took longer than predicted."""
    yield from served_rows(records, SHOWN)
    for name, case in cases(records).items():
        for kind in ("decode", "mixed"):
            ratio = figure(case.predicted, f"measured_over_predicted_{kind}")
            if ratio and case.measured:
                yield Row(name, f"{kind} steps, measured over predicted", None, 1.0, ratio, source=case.measured.source)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """Each measured loop against its bar."""
    measured = {name: case for name, case in cases(records).items() if case.measured}
    if not measured:
        return untimed(records, f"{len(records)} loops were predicted, none was measured.")
    said, passed = [], True
    for name, case in measured.items():
        failure = case.either.metrics.get("failure")
        held, sentence = (False, str(failure)) if failure else _judged(case, measured)
        passed &= held
        said.append(f"{name}: {sentence}")
    return Verdict(passed, "; ".join(said) + ".")


def table(past: Archive) -> str:
    """The newest record of each loop, and the newest of what was predicted of it."""
    names = [job.facts["case"] for part in PARTS for job in jobs(part)]
    every = past.where(experiment="serving_bars").records
    measured = {r.metrics["case"]: r for r in every if r.on == "gpu" and r.metrics.get("case") in names}
    if not measured:
        return "No records yet: `lab run serving_bars --on gpu` makes them."
    machines = {name: record.machine for name, record in measured.items()}
    told = {r.metrics["case"]: r for r in every if r.on == "sim" and machines.get(r.metrics.get("case")) == r.machine}
    both = [record for name in names if name in measured for record in (told.get(name), measured[name]) if record]
    return three_columns(list(rows(both, past)), verdict(both, past).sentence)


def _judged(case: Case, measured: dict[str, Case]) -> tuple[bool, str]:
    """Whether a loop meets its bar, and the words that say so."""
    found = case.either
    part, at = found.metrics.get("part"), {k: v for k, v in found.metrics.items() if isinstance(v, int | float)}
    if part == "host":
        limit = 150 if at["rows"] == 64 else 400
        return at["host_us"] <= limit, f"{at['host_us']:.0f} us a step (bar {limit})"
    if part in ("gaps", "first-gaps"):
        return at["idle_fraction"] <= 0.01, f"{at['idle_fraction']:.2%} of the time between graphs (bar 1%)"
    if part in ("nano", "small"):
        least = 10_000 if question_of(found) == LLAMA else 80_000
        return at["output_throughput"] >= least, f"{at['output_throughput']:,.0f} tokens/s (bar {least:,})"
    if part == "stall":
        whole = next((c.either for c in measured.values() if c.either.metrics.get("budget_ms") == 0), None)
        said, whole_ms = f"longest gap {at['max_itl_ms']:.1f} ms (bar 20)", figure(whole, "long_median_ttft_ms")
        if not at.get("budget_ms"):
            return True, said
        if not whole_ms:
            return False, said
        times = at["long_median_ttft_ms"] / whole_ms
        return at["max_itl_ms"] <= 20 and times <= 1.2, f"{said}, TTFT {times:.2f} of at once (bar 1.20)"
    within = {"output_throughput": 0.05} if part == "knee" else WITHIN
    off = {m: at[m] / told - 1 for m in within if (told := figure(case.predicted, m))}
    said = ", ".join(f"{words(metric)} {value:+.0%} (bar {within[metric]:.0%})" for metric, value in off.items())
    return all(abs(value) <= within[m] for m, value in off.items()), f"measured over predicted {said}"
