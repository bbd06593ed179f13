"""The serving loop against its bars: host work, gaps, throughput, stalls of prompts, and what was predicted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import structs

from experiments.lookup import question_of
from experiments.markdown import three_columns
from experiments.rows import Row, Verdict, untimed
from experiments.running.backends import Backend
from experiments.running.jobs import ServeJob
from lab.problems import MODELS, Model
from lab.record import Archive, Record
from lab.serving.workload import Workload
from sim.errors import InputError

QUESTION = "Does one scheduler keep a GPU busy, its users' tokens even, and its predictions true?"

LLAMA, SMALL = MODELS["llama-3-8b"], MODELS["smollm2-135m"]
NANO = Workload(num_prompts=256, input_len=562, output_len=562, range_ratio=0.822)  # 100 to 1,024 tokens, as nano-vllm
DECODES, LONG = 32, 8192  # sequences that decode, and tokens of the prompts that come between them
CHUNKS = (256, 512, 640, 1024, 2048, LONG + 64)
CHOSEN = 640  # the chunk that is held against the bar
RATES = (8.0, 16.0, 24.0, 32.0)  # requests a second of conversations
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


def _policy(**changed: Any) -> dict[str, Any]:
    return {"max_rows": 256, "max_tokens": 2048, "pages": 6000, "max_length": 8960, **changed}


def _job(name: str, model: Model, requests: Sequence[tuple[float, int, int]], **more: Any) -> ServeJob:
    return ServeJob(
        problem=model.as_dict(),
        requests=tuple(requests),
        policy=more.pop("policy", _policy()),
        experiment="serving_bars",
        facts={"case": name, **more.pop("facts", {})},
        **more,
    )


def _lengths(workload: Workload) -> list[tuple[float, int, int]]:
    return [(r.arrival_us, len(r.prompt), r.max_tokens) for r in workload.requests(2)]


def _host() -> list[ServeJob]:
    found = []
    for rows in (64, 256):
        policy = _policy(max_rows=rows)
        requests = [(0.0, 64, 512)] * rows
        found.append(_job(f"host work, {rows} sequences", SMALL, requests, policy=policy, facts={"rows": rows}))
    return found


def _gaps() -> list[ServeJob]:
    return [_job("batch 32, 8k outputs", LLAMA, [(0.0, 128, 8192)] * 32, policy=_policy(max_rows=32))]


def _nano() -> list[ServeJob]:
    named = (("nano-vllm's workload, 8B", LLAMA), ("nano-vllm's workload, 135M", SMALL))
    return [_job(name, model, _lengths(NANO), policy=_policy(max_length=2048)) for name, model in named]


def _stall() -> list[ServeJob]:
    """Sequences that decode all the while, and a long prompt a second."""
    found = []
    for chunk in CHUNKS:
        requests = [(0.0, 512, 700)] * DECODES + [(1.5e6 + 1e6 * i, LONG, 4) for i in range(3)]
        policy = _policy(max_rows=64, max_tokens=chunk)
        facts = {"chunk": chunk if chunk < LONG else 0}
        name = f"{LONG:,} tokens into {DECODES} decodes, " + (f"chunks of {chunk:,}" if chunk < LONG else "at once")
        found.append(_job(name, LLAMA, requests, policy=policy, long=LONG, facts=facts))
    return found


def _load() -> list[ServeJob]:
    found = []
    for rate in RATES:
        workload = Workload("azure-conv", 160, rate, max_length=8192)
        more = {"attribute": True, "facts": {"requests_per_s": rate}}
        found.append(_job(f"conversations, {rate:g} a second", LLAMA, _lengths(workload), **more))
    return found


PARTS = {"host": _host, "gaps": _gaps, "nano": _nano, "stall": _stall, "load": _load}


@dataclass(frozen=True)
class Options:
    """`part` is host, gaps, nano, stall or load, measured `runs` times; what comes after `seconds` is skipped."""

    part: str = "load"
    runs: int = 1
    seconds: int = 300

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise InputError(f"part is {', '.join(PARTS)}; got {self.part!r}")
        if min(self.runs, self.seconds) < 1:
            raise InputError(f"runs and seconds are at least 1; got {self.runs}, {self.seconds}")


def jobs(part: str) -> list[ServeJob]:
    """The loops of a part."""
    return [structs.replace(job, facts={"part": part, **job.facts}) for job in PARTS[part]()]


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Each loop of a part, and what is predicted of it."""
    asked = [job for job in jobs(options.part) for _ in range(options.runs if backend.on == "gpu" else 1)]
    yield from backend.served(asked, options.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (all is of one run)
    """Each loop's figures, predicted and measured, and by what factor its steps took longer than predicted."""
    for case, (told, found) in _cases(records).items():
        for name in SHOWN:
            values = [one.metrics.get(name) if one else None for one in (told, found)]
            if any(isinstance(value, int | float) for value in values):
                source = found.source if found else ""
                yield Row(case, _named(name), None, *_numbers(values), source=source, percent=name == "idle_fraction")
        if found:
            for kind in ("decode", "mixed"):
                ratio = found.metrics.get(f"measured_over_predicted_{kind}")
                if isinstance(ratio, float):
                    yield Row(case, f"{kind} steps, measured over predicted", None, 1.0, ratio, source=found.source)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """Each measured loop against its bar."""
    cases = {case: (told, found) for case, (told, found) in _cases(records).items() if found}
    if not cases:
        return untimed(records, f"{len(records)} loops were predicted, none was measured.")
    said, passed = [], True
    for case, (told, found) in cases.items():
        assert found
        if failure := found.metrics.get("failure"):
            said.append(f"{case}: {failure}")
            passed = False
            continue
        held, sentence = _judged(case, told, found, cases)
        passed &= held
        said.append(sentence)
    return Verdict(passed, "; ".join(said) + ".")


def table(past: Archive) -> str:
    """The newest run of each part."""
    parts = {str(r.metrics.get("part")): r.run for r in past.where(experiment="serving_bars", on="gpu").records}
    if not parts:
        return "No records yet: `lab run serving_bars --on gpu` makes them."
    found = [r for r in past.where(experiment="serving_bars").records if r.run == parts.get(str(r.metrics.get("part")))]
    return three_columns(list(rows(found, past)), verdict(found, past).sentence)


def _judged(case: str, told: Record | None, found: Record, cases: dict[str, Any]) -> tuple[bool, str]:
    """Whether a loop meets its bar, and the sentence that says so."""
    part, at = found.metrics.get("part"), {k: v for k, v in found.metrics.items() if isinstance(v, int | float)}
    if part == "host":
        limit = 150 if at["rows"] == 64 else 400
        return at["host_us"] <= limit, f"{case}: {at['host_us']:.0f} us a step (bar {limit})"
    if part == "gaps":
        return at["idle_fraction"] <= 0.01, f"{case}: {at['idle_fraction']:.2%} of the time between graphs (bar 1%)"
    if part == "nano":
        least = 10_000 if question_of(found) == LLAMA else 80_000
        return at["output_throughput"] >= least, f"{case}: {at['output_throughput']:,.0f} tokens/s (bar {least:,})"
    if part == "stall":
        whole = next((r for _, r in cases.values() if r.metrics.get("chunk") == 0), found)
        times = at["long_median_ttft_ms"] / float(whole.metrics["long_median_ttft_ms"])
        held = at["max_itl_ms"] <= 20 and times <= 1.2
        judged = at["chunk"] != CHOSEN or held  # the bar is of a choice of chunk: this one's
        return judged, f"{case}: longest gap {at['max_itl_ms']:.1f} ms, TTFT {times:.2f} of at once (bars 20, 1.20)"
    off = {name: at[name] / float(told.metrics[name] or 1.0) - 1 for name in WITHIN} if told else {}
    words = ", ".join(f"{_named(name)} {value:+.0%}" for name, value in off.items())
    return all(abs(value) <= WITHIN[name] for name, value in off.items()), f"{case}: measured over predicted {words}"


def _cases(records: Sequence[Record]) -> dict[str, tuple[Record | None, Record | None]]:
    """(predicted, measured) of each loop, the newest of each."""
    found: dict[str, tuple[Record | None, Record | None]] = {}
    for record in records:
        case = str(record.metrics.get("case"))
        told, timed = found.get(case, (None, None))
        found[case] = (told, record) if record.on == "gpu" else (record, timed)
    return found


def _named(metric: str) -> str:
    for suffix, unit in (("_ms", "ms"), ("_us", "us")):
        if metric.endswith(suffix):
            return f"{metric.removesuffix(suffix).replace('_', ' ')}, {unit}"
    return {"output_throughput": "output tokens a second"}.get(metric, metric.replace("_", " "))


def _numbers(values: Sequence[Any]) -> list[float | None]:
    return [float(value) if isinstance(value, int | float) else None for value in values]
