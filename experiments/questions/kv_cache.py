"""Decode's second bill: the KV cache, read whole for every token, and what shrinks it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.lookup import question_of
from experiments.markdown import figure
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
from lab.problems import Attention
from lab.record import Archive, Record
from sim.errors import InputError
from sim.machine import machine

QUESTION = "How large does the KV cache get, and what do GQA, MLA and fp8 make of it?"
GQA_HEADS = 8  # Llama 3
MOST_LAYERS = 100_000
MLA_LATENT, MLA_ROPE = 512, 64  # DeepSeek-V2, arXiv 2405.04434, 3.1.2


@dataclass(frozen=True)
class Options:
    """The article's model: `layers` layers of width d in heads of head_dim, `batch` sequences of `context` tokens."""

    layers: int = 32
    d: int = 4096
    head_dim: int = 128
    batch: int = 1
    context: int = 8192

    def __post_init__(self) -> None:
        if not 1 <= self.layers <= MOST_LAYERS or self.head_dim < 1 or self.d < self.head_dim:
            raise InputError(
                f"layers and head_dim must be at least 1, layers at most {MOST_LAYERS:,}, d at least head_dim; "
                f"layers = {self.layers}, head_dim = {self.head_dim}, d = {self.d}"
            )


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """One record a variant: the attention of one layer, and its cache in all layers."""
    heads = options.d // options.head_dim
    for kv in ("bf16", "fp8"):
        for variant, kv_heads, width, latent in (
            ("MHA", heads, options.head_dim, 0),
            ("GQA", min(GQA_HEADS, heads), options.head_dim, 0),
            ("MLA", 1, MLA_LATENT + MLA_ROPE, MLA_LATENT),
        ):
            layer = Attention(options.batch, heads, kv_heads, width, 1, options.context, kv=kv, latent=latent)
            metrics = {"variant": variant, "layers": options.layers, "cache_bytes": options.layers * layer.kv_bytes}
            yield backend.closed_form(metrics, problem=layer)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001  (nothing here is measured yet)
    """Size of the cache and the time to read it once, by variant; a note where no such card holds it."""
    for record in records:
        layer, card = question_of(record), machine(record.machine)
        assert isinstance(layer, Attention)
        case = f"{record.metrics['variant']}, {layer.kv}"
        nbytes = _cache(record)
        beyond = "" if nbytes <= card.hbm_bytes else f"more than the {_gigabytes(card.hbm_bytes)} of one {card.title}"
        yield Row(case, "KV cache, GB", nbytes / 1e9, None, None, note=beyond)
        yield Row(case, "read of it, ms a step", nbytes / card.hbm_bandwidth * 1e3, None, None)
        yield Row(case, "intensity, FLOP/B", layer.flops / layer.bytes["total"], None, None)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """The article's size, its formula, and the factor by which each variant shrinks it."""
    first = records[0]
    layer = question_of(first)
    assert isinstance(layer, Attention)
    layers = int(first.metrics["layers"] or 0)
    formula = 4 * layer.batch * layers * layer.kv_len * layer.q_heads * layer.head_dim
    factors = ", ".join(
        f"{r.metrics['variant']} in {question_of(r).as_dict()['kv']} {_cache(first) / _cache(r):.3g} times smaller"
        for r in records[1:]
    )
    return Verdict(
        _cache(first) == formula,
        f"{layer.batch} sequence(s) of {layer.kv_len:,} tokens in {layers} layers hold {_gigabytes(_cache(first))} "
        f"of keys and values, read whole for every token{_beyond(records)}; {factors}.",
    )


def _beyond(records: Sequence[Record]) -> str:
    """Which variants one card cannot hold, as a part of a sentence; nothing where it holds all."""
    card = machine(records[0].machine)
    over = [
        f"{r.metrics['variant']} in {question_of(r).as_dict()['kv']}" for r in records if _cache(r) > card.hbm_bytes
    ]
    return f"; one {card.title} does not hold {', '.join(over)}" if over else ""


def _gigabytes(nbytes: float) -> str:
    return f"{figure(nbytes / 1e9)} GB"


def _cache(record: Record) -> int:
    return int(record.metrics["cache_bytes"] or 0)
