"""Decode slows as a generation runs on: a layer's matrices stay as they are, its KV cache grows with every token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.chart import Chart, Series
from experiments.lookup import measured, question_of, times
from experiments.questions.attention_runs import CLOCK, job, runs_of
from experiments.questions.duel import spelled
from experiments.rows import MEGA, Row, Verdict, time_row
from experiments.running.backends import Backend
from lab.problems import MODELS, Attention, Linear
from lab.record import Archive, Record
from sim.errors import InputError

QUESTION = "What does a token of decode cost as its context grows?"

MODEL = MODELS["llama-3-8b"]


@dataclass(frozen=True)
class Options:
    """One layer of Llama-3-8B, one sequence, contexts of `shortest`, twice as many, ... up to `longest` tokens."""

    shortest: int = 1024
    longest: int = 131072
    rounds: int = 20
    seconds: int = 120

    def __post_init__(self) -> None:
        if not 1 <= self.shortest < self.longest:
            raise InputError(f"shortest is at least 1 and below longest; got {self.shortest}, {self.longest}")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """The layer's matrices, q with k and v and gate with up as one, then its attention at every context."""
    m, heads = MODEL, MODEL.q_heads + 2 * MODEL.kv_heads
    shapes = ((heads * m.head_dim, m.d), (m.d, m.q_heads * m.head_dim), (2 * m.ffn, m.d), (m.d, m.ffn))
    problems: list[Linear | Attention] = [Linear(1, n, k) for n, k in shapes]
    context = options.shortest
    while context <= options.longest:
        problems.append(Attention(1, m.q_heads, m.kv_heads, m.head_dim, 1, context))
        context *= 2
    jobs = [job(problem, backend.machine, "kv_growth", options.rounds) for problem in problems]
    yield from backend.timed(jobs, options.seconds)


@dataclass(frozen=True)
class Layer:
    """The records of a layer's matrices, and of its attention at one context."""

    matrices: tuple[Record, ...]
    attention: Record

    @property
    def parts(self) -> tuple[Record, ...]:
        return (*self.matrices, self.attention)

    @property
    def context(self) -> int:
        problem = question_of(self.attention)
        assert isinstance(problem, Attention)
        return problem.kv_len

    @property
    def flops(self) -> int:
        return sum(question_of(record).flops for record in self.parts)

    def nbytes(self, of: str = "total") -> int:
        """Compulsory bytes, of all or of "weights" or "kv" alone."""
        return sum(question_of(record).bytes.get(of, 0) for record in self.parts)

    def us(self, past: Archive) -> tuple[float, str]:
        """(microseconds of all parts, whether "measured" or "predicted")."""
        every, source = times(self.parts, past, (CLOCK,))
        return sum(every), source


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """At every context: FLOPs, bytes, and the time of attention and of the layer."""
    for layer in _layers(records):
        case, (us, source) = f"{layer.context:,} tokens", layer.us(past)
        yield Row(case, "MFLOP of the layer", layer.flops / MEGA, None, None)
        yield Row(case, "MB of weights", layer.nbytes("weights") / MEGA, None, None)
        yield Row(case, "MB of keys and values", layer.nbytes("kv") / MEGA, None, None)
        row = time_row(case, f"{layer.attention.kernel}, us", layer.attention, measured(past, layer.attention, CLOCK))
        yield row
        predicted = sum(record.predicted_us or 0.0 for record in layer.parts)
        yield Row(case, "the layer, us", None, predicted, us if source == "measured" else None, row.source, row.note)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """How FLOPs, bytes and the time of a layer grow over all contexts."""
    layers = _layers(records)
    if len(layers) < 2:
        return Verdict(None, "There are not two contexts to compare.")
    first, last = layers[0], layers[-1]
    every, source = times([*first.parts, *last.parts], past, (CLOCK,))
    half = len(first.parts)
    more = {
        "FLOPs": last.flops / first.flops,
        "bytes": last.nbytes() / first.nbytes(),
        "time": sum(every[half:]) / sum(every[:half]),
    }
    equal = next((layer.context for layer in layers if layer.nbytes("kv") >= layer.nbytes("weights")), None)
    beyond = f"from {equal:,} tokens on the cache is more than the weights" if equal else "the weights are more of it"
    return Verdict(
        more["time"] > 1 if source == "measured" else None,
        f"From {first.context:,} to {last.context:,} tokens of context a layer's FLOPs grow {spelled(more['FLOPs'])} "
        f"times, its bytes {spelled(more['bytes'])} times and its time {spelled(more['time'])} times "
        f"({source}); {beyond}.",
    )


def pictures(past: Archive) -> dict[str, Chart]:
    """A layer's time against the context, and what HBM's data sheet makes of its bytes."""
    layers = _layers(past.where(experiment="kv_growth", on="sim").newest_run())
    if not layers:
        return {}
    predicted = [(float(la.context), sum(record.predicted_us or 0.0 for record in la.parts)) for la in layers]
    timed = [(float(la.context), us) for la in layers for us, source in (la.us(past),) if source == "measured"]
    moved = [(float(la.context), la.nbytes("kv") / MEGA) for la in layers]
    weights = [(float(la.context), la.nbytes("weights") / MEGA) for la in layers]
    x = "tokens of context"
    series = [Series("a layer", predicted, "predicted"), *([Series("a layer", timed)] if timed else [])]
    return {
        "kv_growth_time": Chart("One layer of Llama-3-8B decodes a token", x, "us", tuple(series)),
        "kv_growth_bytes": Chart(
            "What the layer reads for it",
            x,
            "MB",
            (Series("keys and values", moved, "theory"), Series("weights", weights, "theory")),
        ),
    }


def _layers(records: Sequence[Record]) -> list[Layer]:
    """The layer at each context, the shortest first."""
    ours = runs_of(records)
    matrices = tuple(r for r in ours if isinstance(question_of(r), Linear))
    found = [Layer(matrices, r) for r in ours if isinstance(question_of(r), Attention)]
    return sorted(found, key=lambda layer: layer.context)
