"""Paged KV: what it costs decode to find its cache page by page through a block table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from experiments.chart import Chart
from experiments.lookup import times
from experiments.questions.attention_runs import CLOCK, attention_of, job, run_rows, runs_of, times_of
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
from lab.problems import Attention
from lab.record import Archive, Record
from sim.errors import InputError

QUESTION = "What does paging cost decode, by the size of a page?"

PAGES = (1, 16, 64, 128)  # tokens
COST = 1.02  # of the contiguous cache's time, for pages of 16 tokens and more: bandwidth is what decode has


@dataclass(frozen=True)
class Options:
    """`batch` sequences of `context` tokens, their pages in no order; bandwidth binds where the cache is large."""

    batch: int = 64
    context: int = 8192
    q_heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    rounds: int = 20
    seconds: int = 120

    def __post_init__(self) -> None:
        if min(self.batch, self.context) < 1:
            raise InputError(f"batch and context are at least 1; got {self.batch}, {self.context}")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """The contiguous cache, then one of each size of page."""
    o = options
    contiguous = Attention(o.batch, o.q_heads, o.kv_heads, o.head_dim, 1, o.context)
    problems = [contiguous, *(replace(contiguous, page=page) for page in PAGES)]
    yield from backend.timed([job(p, backend.machine, "paged_kv", o.rounds) for p in problems], o.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Time and HBM bytes of each cache, and its time over that of the contiguous one."""
    found = _by_page(records)
    for page, record in found.items():
        yield from run_rows(record, past, _case(page))
        if page and 0 in found:
            predicted = (record.predicted_us or 0.0) / (found[0].predicted_us or 1.0)
            (paged_us, us), source = times([record, found[0]], past, (CLOCK,))
            timed = paged_us / us if source == "measured" else None
            yield Row(_case(page), "time over the contiguous cache's", None, predicted, timed)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """How many times as long each size of page takes as no pages."""
    found = _by_page(records)
    if 0 not in found or len(found) < 2:
        return Verdict(None, "There is no contiguous cache, or no pages, to compare.")
    every, source = times(list(found.values()), past, (CLOCK,))
    by_page = dict(zip(found, every, strict=True))
    over = {page: us / by_page[0] for page, us in by_page.items() if page}
    said = ", ".join(f"{_case(page)} {over[page]:.3f}" for page in over)
    held = all(ratio <= COST for page, ratio in over.items() if page > 1)
    return Verdict(
        held if source == "measured" else None,
        f"Times over the contiguous cache's: {said} ({source}).",
    )


def pictures(past: Archive) -> dict[str, Chart]:
    """Time against the size of a page."""
    found = _by_page(past.where(experiment="paged_kv", on="sim").newest_run())
    if not found:
        return {}
    points = [(float(page), record) for page, record in found.items() if page]
    level = [(float(page), found[0]) for page in (min(PAGES), max(PAGES))]
    series = [*times_of("paged", points, past), *times_of("contiguous", level, past)]
    return {"paged_kv": Chart("Decode through a block table", "tokens of a page", "us", tuple(series))}


def _by_page(records: Sequence[Record]) -> dict[int, Record]:
    return {attention_of(record).page: record for record in runs_of(records)}


def _case(page: int) -> str:
    return f"pages of {page}" if page else "contiguous"
