"""README's table of decode: every format and shape, its time by batch beside the plain read's and the best peer's."""

from collections.abc import Iterator, Sequence

from experiments import decode_bars
from experiments.decode_bars import BATCHES, PARTS, Cell
from lab.record import Archive, Record

HEADINGS = ["format", "n x k", "plain read, us", *(f"m = {m}" for m in BATCHES)]


def newest(past: Archive) -> list[Record]:
    """The newest time of each layer, with what was timed beside it; `large` has a line of its own."""
    timed = past.where(experiment="decode_bars", on="gpu").records
    runs = {str(r.problem): r.run for r in timed if r.schedule is not None and "bar" in r.metrics}
    return [r for r in timed if runs.get(str(r.problem)) == r.run and "stage" not in r.metrics]


def rows(records: Sequence[Record]) -> Iterator[list[str]]:
    """A row for each format and shape: ours, in brackets the best peer's time; * marks a bar that is missed."""
    cells = decode_bars.cells(records)
    for part in PARTS:
        of_part = [cell for cell in cells if cell.record.metrics["bar"] == part]
        for n, k in dict.fromkeys((cell.problem.n, cell.problem.k) for cell in of_part):
            by_batch = {cell.problem.m: cell for cell in of_part if (cell.problem.n, cell.problem.k) == (n, k)}
            reads = [cell.read for cell in by_batch.values() if cell.read]
            read = f"{min(reads):.2f}" if reads else "-"
            yield [part, f"{n:,} x {k:,}", read, *(_figures(by_batch.get(m)) for m in BATCHES)]


def sentences(records: Sequence[Record]) -> Iterator[str]:
    """What decode_bars says of each part."""
    for part in (*PARTS, "large"):
        own = [r for r in records if r.metrics.get("bar") == part]
        if own:
            yield f"{part}: {decode_bars.verdict(own, Archive(())).sentence}"


def _figures(cell: Cell | None) -> str:
    if cell is None or cell.record.us is None:
        return "-"
    peer = f" ({cell.peer.us:.1f})" if cell.peer and cell.peer.us else ""
    return f"{cell.record.us:.2f}{'*' if cell.missed else ''}{peer}"
