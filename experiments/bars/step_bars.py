"""Whole steps of models with random weights, one graph replayed, beside PyTorch's compiled step in the same run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from experiments.lookup import best_peer, is_peer, question_of
from experiments.markdown import three_columns
from experiments.rows import Row, Verdict, floor_of, timed_by, untimed
from experiments.running.backends import Backend
from experiments.running.jobs import SpeakJob, StepJob
from lab.problems import MODELS, Model
from lab.problems.model import PREFILL
from lab.record import Archive, Record, Value
from sim.errors import InputError

QUESTION = "How far is a whole step of a model from the time that its bytes or its operations take?"

LLAMA_3_8B, LLAMA_2_13B = MODELS["llama-3-8b"], MODELS["llama-2-13b"]
# meta-llama/Llama-3.2-1B, config.json
LLAMA_3_1B = Model(16, 2048, q_heads=32, kv_heads=8, head_dim=64, ffn=8192, vocab=128256, tied=True)
LAYER_US = 7.5  # beside the time that a step's bytes take
READ = 4.37e12  # bytes a second of an H200, as it was read when the bars were set


class Bar(NamedTuple):
    """What a step may take: by a rule of its bytes and layers, or in microseconds on an H200, or TFLOP/s at least."""

    times_bytes: float = 0.0
    a_layer_us: float = 0.0
    us: float = 0.0
    tflops: float = 0.0


RULE = Bar(times_bytes=1.0, a_layer_us=LAYER_US)


def _decode(model: Model, batch: int, context: int, weights: str = "bf16") -> Model:
    return replace(model, batch=batch, context=context, weights=weights)


PARTS: dict[str, dict[Model, Bar]] = {
    "decode": {
        _decode(LLAMA_3_8B, 1, 2048): RULE,
        _decode(LLAMA_3_8B, 1, 8192): RULE,
        _decode(LLAMA_3_8B, 16, 2048): Bar(us=4800),
        _decode(LLAMA_3_8B, 16, 8192): Bar(us=7900),
    },
    "formats": {_decode(LLAMA_3_8B, 1, 2048, form): RULE for form in ("int4_g128", "fp8")},
    "small": {_decode(LLAMA_3_1B, 1, 160): Bar(us=690)},
    "large": {_decode(LLAMA_2_13B, 1, 2048): Bar(times_bytes=1.05)},
    "prefill": {replace(LLAMA_3_8B, phase=PREFILL, context=context): Bar(tflops=600) for context in (2048, 8192)},
}


GENERATE = "generate"
HOST_US = 60  # of a step
TOKENS_PER_S = 1800  # of SmolLM2-135M, text streamed
SPOKEN = ((0.0, 0, 1.0), (0.8, 40, 0.95))  # greedy; temperature, top-k, top-p


@dataclass(frozen=True)
class Options:
    """`part` names the steps, of several parts joined by +; `peers` times PyTorch's too.

    `only` keeps those in whose name it is, as "batch 16" or "fp8". `model` is what part=generate speaks with, if not
    SmolLM2. The best schedules of the steps' matrices and attention
    are looked for first, in `tune` seconds. What has not begun after `seconds` is skipped.
    """

    part: str = "decode"
    only: str = ""
    peers: bool = True
    tune: int = 0
    model: str = ""
    rounds: int = 30
    seconds: int = 600

    def __post_init__(self) -> None:
        if unknown := [part for part in self.parts if part not in (*PARTS, GENERATE)]:
            known = ", ".join((*PARTS, GENERATE))
            raise InputError(f"part is {known}, or some of them joined by +; got {unknown[0]!r}")
        if not self.steps and GENERATE not in self.parts:
            raise InputError(f"no step of part={self.part} has {self.only!r} in its name")
        if min(self.rounds, self.seconds) < 1 or self.tune < 0:
            raise InputError(
                f"rounds and seconds are at least 1, tune at least 0; got {self.rounds}, {self.seconds}, {self.tune}"
            )

    @property
    def parts(self) -> list[str]:
        return self.part.split("+")

    @property
    def steps(self) -> list[tuple[str, Model]]:
        """(part, model) of each step."""
        return [(part, model) for part in self.parts for model in PARTS.get(part, ()) if self.only in _named(model)]


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Each step of a part, in launches that overlap and in plain ones; each generation."""
    if GENERATE in options.parts:
        facts: dict[str, Value] = {"bar": GENERATE}
        how = {"facts": facts, "rounds": options.rounds, "experiment": "step_bars", "model": options.model}
        yield from backend.spoken([SpeakJob(settings=each, **how) for each in SPOKEN], options.seconds)
    jobs = [
        StepJob(
            problem=model.as_dict(),
            experiment="step_bars",
            facts={"bar": part},
            peers=options.peers,
            rounds=options.rounds,
        )
        for part, model in options.steps
    ]
    if options.tune:
        yield from backend.tuned_in_steps(jobs, options.tune)
    if jobs:
        yield from backend.stepped(jobs, options.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (all is of one run)
    """Each step: its floor, its prediction and its times; of a generation, a token's."""
    for record in records:
        if record.metrics.get("bar") == GENERATE:
            yield timed_by(Row(_spoken(record), "us a token", None, None, None), record)
        if not _is_step(record):
            continue
        model, what = _asked(record), record.metrics.get("launches", "overlapping")
        row = Row(_named(model), f"{what} launches, us", floor_of(record), record.predicted_us, None)
        yield timed_by(row, record)
        peer = best_peer(records, record)
        if peer and what == "overlapping":
            yield timed_by(Row(_named(model), f"{peer.kernel}, us", None, None, None), peer)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001 (the bars are constants)
    """Each step against its bar."""
    spoken = [r for r in records if r.metrics.get("bar") == GENERATE and r.us]
    if spoken:
        return _of_speech(spoken)
    ours = [r for r in records if _is_step(r) and r.us and r.metrics.get("launches") == "overlapping"]
    if not ours:
        return untimed(records, f"{len(records)} steps were predicted, none was timed.")
    said, passed = [], True
    for record in ours:
        model = _asked(record)
        bar = next((bar for part in PARTS.values() for of, bar in part.items() if of == model), None)
        if bar is None or record.us is None:
            continue
        limit = _limit(bar, model)
        passed &= record.us <= limit
        said.append(f"{_named(model)} takes {record.us / 1000:.2f} ms (bar {limit / 1000:.2f})")
    return Verdict(passed, "; ".join(said) + ".")


def table(past: Archive) -> str:
    """The newest times of each step, and of each way to generate."""
    newest: dict[str, Record] = {}
    for record in past.where(experiment="step_bars", on="gpu").records:
        if record.us is not None and "stage" not in record.metrics:
            what = [record.metrics.get(name) for name in ("launches", "model", "settings")]
            newest[f"{record.machine} {record.problem} {record.kernel} {what}"] = record
    found = list(newest.values())
    if not found:
        return "No records yet: `lab run step_bars --on gpu` makes them."
    spoken = [r for r in found if r.metrics.get("bar") == GENERATE]
    sentences = [verdict([r for r in found if r not in spoken], past).sentence]
    if spoken:
        sentences.append(verdict(spoken, past).sentence)
    return three_columns(list(rows(found, past)), " ".join(sentences))


def _is_step(record: Record) -> bool:
    """Whether it is one of ours, no peer's and of no search."""
    return (record.problem or {}).get("kind") == Model.kind and not is_peer(record)


def _of_speech(records: Sequence[Record]) -> Verdict:
    said, passed = [], True
    for record in records:
        rate, host = (float(record.metrics[name] or 0) for name in ("tokens_per_s", "host_us"))
        passed &= rate >= TOKENS_PER_S and host <= HOST_US and not record.metrics["allocated_bytes"]
        said.append(
            f"{_spoken(record)} makes {rate:,.0f} tokens/s (bar {TOKENS_PER_S:,}) at {host:.0f} us of the host a step "
            f"(bar {HOST_US}), {record.metrics['allocated_bytes']} B allocated"
        )
    return Verdict(passed, "; ".join(said) + ".")


def _spoken(record: Record) -> str:
    return f"{record.metrics['model']}, {record.metrics['settings'] or 'greedy'}"


def _limit(bar: Bar, model: Model) -> float:
    """Microseconds that a step may take."""
    if bar.us:
        return bar.us
    if bar.tflops:
        return model.flops / bar.tflops / 1e6
    return bar.times_bytes * model.streamed_bytes / READ * 1e6 + bar.a_layer_us * model.layers


def _asked(record: Record) -> Model:
    model = question_of(record)
    assert isinstance(model, Model)
    return model


def _named(model: Model) -> str:
    what = "prefill of" if model.phase == PREFILL else f"batch {model.batch},"
    return f"{model.layers} layers of {model.d:,} in {model.weights}, {what} {model.context:,} tokens"
