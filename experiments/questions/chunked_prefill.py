"""Long prompts into running decodes: the gap that each chunk makes, against the prompt's own first token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.chart import Chart, Mark, Series
from experiments.markdown import three_columns
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
from experiments.served import DECODES, LONG, between_decodes, cases, figure, job, newest, served_rows
from lab.problems.model import model_named
from lab.record import Archive, Record
from sim.errors import InputError

QUESTION = "How large may a chunk of a prompt be before others feel it?"

SHOWN = ("max_itl_ms", "p99_itl_ms", "mean_itl_ms", "long_median_ttft_ms", "output_throughput")
LINES = {"longest gap": "max_itl_ms", "p99 of gaps": "p99_itl_ms", "first token": "long_median_ttft_ms"}
MARKS: tuple[Mark, ...] = ("predicted", "measured")
CHUNKS = (128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Options:
    """Prompts of 8,192 tokens, one a second, into 32 decodes of a model; in chunks of each size, and at once."""

    model: str = "llama-3-8b"
    seconds: int = 200

    def __post_init__(self) -> None:
        if model_named(self.model).layers > 200:
            raise InputError("no such model")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Every size of chunk; a step's decodes count among its tokens."""
    model, found = model_named(options.model), []
    for chunk in (*CHUNKS, LONG + 2 * DECODES):
        name = f"chunks of {chunk:,}" if chunk < LONG else "at once"
        policy = {"max_rows": 2 * DECODES, "max_tokens": chunk}
        facts = {"chunk": min(chunk, LONG)}
        found.append(job("chunked_prefill", name, model, between_decodes(), policy=policy, long=LONG, facts=facts))
    yield from backend.served(found, options.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (all is of one run)
    """The decodes' gaps, pooled and at their longest, and the prompts' first tokens."""
    return served_rows(records, SHOWN)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """The largest chunk whose gap stays below 20 ms, what it costs the prompt, and what the pooled p99 says."""
    found = sorted(((c.either.metrics["chunk"], c.either) for c in cases(records).values()), key=lambda p: p[0])
    whole = next((record for chunk, record in found if chunk == LONG), None)
    if whole is None:
        return Verdict(None, "There is no prompt at once to compare with.")
    kept = [(chunk, r) for chunk, r in found if (figure(r, "max_itl_ms") or 0.0) <= 20.0]
    gap, first = (figure(whole, name) or 0.0 for name in ("max_itl_ms", "long_median_ttft_ms"))
    if not kept:
        return Verdict(False, f"No chunk keeps gaps below 20 ms; at once they are {gap:.0f} ms.")
    chunk, record = kept[-1]
    mine = (figure(record, "max_itl_ms") or 0.0), (figure(record, "long_median_ttft_ms") or 0.0) / first
    return Verdict(
        None,
        f"Chunks of {chunk:,} keep the longest gap at {mine[0]:.1f} ms where a prompt at once makes it {gap:.0f} ms, "
        f"for {mine[1]:.2f} of its time to the first token.",
    )


def pictures(past: Archive) -> dict[str, Chart]:
    """Gap and first token against the chunk."""
    found = cases(newest(past, "chunked_prefill"))
    series = []
    for label, metric in LINES.items():
        for mark in MARKS:
            points = [(figure(one, "chunk"), figure(one, metric)) for one in (getattr(c, mark) for c in found.values())]
            if kept := sorted((x, y) for x, y in points if x and y):
                series.append(Series(label, kept, mark))
    if not series:
        return {}
    title = f"Prompts of {LONG:,} tokens into {DECODES} decodes"
    return {"chunked_prefill": Chart(title, "tokens of a step", "ms", tuple(series))}


def table(past: Archive) -> str:
    """The newest run."""
    found = newest(past, "chunked_prefill")
    if not found:
        return "No records yet: `lab run chunked_prefill --record` makes them."
    return three_columns(list(rows(found, past)), verdict(found, past).sentence)
