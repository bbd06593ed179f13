"""What shrinks the KV cache shrinks decode's time: fewer KV heads, a latent, half the bits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.chart import Chart, Series
from experiments.lookup import times
from experiments.questions.attention_runs import CLOCK, attention_of, job, run_rows, runs_of, times_of
from experiments.questions.duel import spelled
from experiments.questions.kv_cache import GQA_HEADS, MLA_LATENT, MLA_ROPE
from experiments.rows import MEGA, Row, Verdict
from experiments.running.backends import Backend
from lab.problems import Attention
from lab.record import Archive, Record
from sim.errors import InputError

QUESTION = "How much faster is decode's attention with GQA, MLA and an fp8 cache?"

PAGE = 64  # tokens, of MLA's cache
NEAR = 1.5  # times as much as its bytes shrink, or as little, is how far a time may shrink


@dataclass(frozen=True)
class Options:
    """`batch` sequences of `context` tokens, `q_heads` query heads; GQA has eight KV heads, MLA one latent."""

    batch: int = 16
    context: int = 8192
    q_heads: int = 32
    head_dim: int = 128
    rounds: int = 20
    seconds: int = 120

    def __post_init__(self) -> None:
        if min(self.batch, self.context) < 1 or self.q_heads % GQA_HEADS:
            raise InputError(
                f"batch and context are at least 1, q_heads a multiple of {GQA_HEADS}; "
                f"got {self.batch}, {self.context}, {self.q_heads}"
            )


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Each variant, the largest cache first."""
    o = options
    problems = [
        Attention(o.batch, o.q_heads, kv_heads, o.head_dim, 1, o.context, kv=kv)
        for kv_heads in (o.q_heads, GQA_HEADS)
        for kv in ("bf16", "fp8")
    ]
    latent = Attention(o.batch, o.q_heads, 1, MLA_LATENT + MLA_ROPE, 1, o.context, page=PAGE, latent=MLA_LATENT)
    jobs = [job(p, backend.machine, "kv_shrink", o.rounds) for p in (*problems, latent)]
    yield from backend.timed(jobs, o.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """The cache, its traffic and the time of each variant."""
    for name, record in _variants(records).items():
        yield Row(name, "KV cache of a layer, MB", attention_of(record).kv_bytes / MEGA, None, None)
        yield from run_rows(record, past, name)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """By how much each variant shrinks bytes and time."""
    found = _variants(records)
    if len(found) < 2:
        return Verdict(None, "There are not two variants to compare.")
    every, source = times(list(found.values()), past, (CLOCK,))
    first, *others = found.items()
    said, held = [], bool(others)
    for (name, record), us in zip(others, every[1:], strict=True):
        fewer = attention_of(first[1]).kv_bytes / attention_of(record).kv_bytes
        faster = every[0] / us
        held &= fewer / NEAR <= faster <= fewer * NEAR
        said.append(f"{name} {spelled(fewer)} times fewer bytes and {spelled(faster)} times less time")
    return Verdict(held if source == "measured" else None, f"Beside {first[0]}: {'; '.join(said)} ({source}).")


def pictures(past: Archive) -> dict[str, Chart]:
    """Time against the size of the cache: what decode pays is what it reads."""
    found = _variants(past.where(experiment="kv_shrink", on="sim").newest_run())
    if not found:
        return {}
    series: list[Series] = []
    for name, record in found.items():
        series += times_of(name, [(attention_of(record).kv_bytes / MEGA, record)], past)[-1:]
    return {"kv_shrink": Chart("Decode pays for what it reads", "KV cache of a layer, MB", "us", tuple(series))}


def _variants(records: Sequence[Record]) -> dict[str, Record]:
    """By name, the largest cache first."""
    ours = sorted(runs_of(records), key=lambda record: -attention_of(record).kv_bytes)
    return {_name(attention_of(record)): record for record in ours}


def _name(layer: Attention) -> str:
    kind = "MLA" if layer.latent else "MHA" if layer.group == 1 else "GQA"
    return f"{kind}, {layer.kv}"
