"""Decode's linear layers against the memory floor: a plain read of the same bytes, and other libraries, in one run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments import markdown
from experiments.lookup import (
    READ,
    best_peer,
    is_peer,
    layer_of,
    machines_of,
    note,
    read_of,
    source_of,
)
from experiments.rows import Row, Verdict, time_row, timed_by, untimed
from experiments.running.backends import Backend
from experiments.running.formats import chosen_job, in_format
from experiments.running.jobs import Search
from lab.problems import Linear
from lab.record import Archive, Record
from sim.errors import InputError

QUESTION = "How far are the linear layers of decode from the time it takes to read their weights?"

SHAPES = ((4096, 4096), (8192, 8192), (13824, 5120), (14336, 4096), (4096, 14336))  # n, k
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
PARTS = ("bf16", "fp8", "gptq_g128", "int4_g128", "int4_g32")
LARGE = Linear(1, 16384, 16384)

FEW = 16  # tokens up to which a layer is to stand at the read's time
BEYOND_READ_US = {8: (1.5, 2.0), FEW: (1.5, 3.5)}  # up to so many tokens: bf16 and fp8, int4
READ_RATE = 0.95  # of the plain read's, on the large matrix
CLIFF = 1.05  # times what more tokens take
# Of the best peer's time, by format and batch.
SHARES = {
    "bf16": {32: 1.00, 64: 1.00, 128: 1.00},
    "gptq_g128": {32: 0.95, 64: 0.97, 128: 1.00},
    "int4_g128": {32: 0.95, 64: 0.97, 128: 1.00},
}

_HEADINGS = ["format", "n x k", "plain read, us", *(f"m = {m}" for m in BATCHES)]


@dataclass(frozen=True)
class Options:
    """`part` is bf16, fp8, gptq_g128, int4_g128, int4_g32, some joined by +, or large.

    A `tune` above 0 searches each layer first, among so many schedules of each kernel. Batches go from `least` to
    `most`; `shape` is the number of one shape or -1 for all from number `first` on. What has not begun after `seconds`
    is skipped.
    """

    part: str = "bf16"
    least: int = 1
    most: int = 128
    shape: int = -1
    first: int = 0
    rounds: int = 20
    seconds: int = 500
    tune: int = 0

    def __post_init__(self) -> None:
        if self.part != "large" and (unknown := [name for name in self.part.split("+") if name not in PARTS]):
            raise InputError(f"parts are {', '.join(PARTS)}, joined by +, or large; got {unknown[0]!r}")
        if not (-1 <= self.shape < len(SHAPES) and 0 <= self.first < len(SHAPES)):
            last = len(SHAPES) - 1
            raise InputError(f"shape is -1 to {last}, first 0 to {last}; got {self.shape}, {self.first}")
        if min(self.most, self.rounds, self.seconds) < 1 or self.tune < 0:
            given = f"{self.most}, {self.rounds}, {self.seconds}, {self.tune}"
            raise InputError(f"most, rounds and seconds are at least 1, tune is 0 or more; got {given}")
        if self.part != "large" and not any(self.least <= m <= self.most for m in BATCHES):
            raise InputError(f"batches are {', '.join(map(str, BATCHES))}; none is from {self.least} to {self.most}")

    @property
    def problems(self) -> list[tuple[str, Linear]]:
        """(part, layer): shape by shape, the most tokens first: fewer are their first rows."""
        if self.part == "large":
            return [("large", LARGE)]
        chosen = SHAPES[self.first :] if self.shape < 0 else SHAPES[self.shape : self.shape + 1]
        batches = [m for m in reversed(BATCHES) if self.least <= m <= self.most]
        parts = self.part.split("+")
        return [(part, in_format(part, Linear(m, n, k))) for part in parts for n, k in chosen for m in batches]


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """What the lab chooses for each layer beside its peers and the plain read: plain launches inside a graph."""
    how = {"plain": True, "reads": True, "rounds": options.rounds, "experiment": "decode_bars"}
    if options.tune and backend.on == "gpu":
        brief = {"clock": "graph", "most": options.tune, **how}
        searches = [Search(problem=p.as_dict(), facts={"bar": part}, **brief) for part, p in options.problems]
        yield from backend.tuned(searches, options.seconds)
        return
    jobs = [chosen_job(p, backend.machine, {"bar": part}, clocks=("graph",), **how) for part, p in options.problems]
    yield from backend.timed(jobs, options.seconds)


@dataclass(frozen=True)
class Cell:
    """A layer's time beside the plain read's and the best peer's in its run, in microseconds; None where not timed."""

    record: Record
    problem: Linear
    read: float | None
    peer: Record | None

    @property
    def name(self) -> str:
        return f"{self.part}, m = {self.problem.m}, {self.problem.n} x {self.problem.k}"

    @property
    def part(self) -> str:
        return str(self.record.metrics["bar"])

    @property
    def limits(self) -> dict[str, float | None]:
        """What its time must not exceed, by what sets the limit."""
        p, peer_us = self.problem, self.peer.us if self.peer else None
        if (p.n, p.k) == (LARGE.n, LARGE.k):
            return {"the read": self.read / READ_RATE if self.read else None}
        if p.m <= FEW:
            beyond = BEYOND_READ_US[8 if p.m <= 8 else FEW][bool(p.group)]
            own: dict[str, float | None] = {"the read": self.read + beyond if self.read else None}
            return own | ({self.peer.kernel or "": peer_us} if self.peer else {})
        share = SHARES.get(self.part, {}).get(p.m)
        if share is None or self.peer is None or peer_us is None:
            return {}
        return {self.peer.kernel or "": share * peer_us}

    @property
    def missed(self) -> dict[str, float]:
        """Its time over each limit that it exceeds."""
        us = self.record.us
        return {name: us / limit for name, limit in self.limits.items() if us and limit and us > limit}


def cells(records: Sequence[Record]) -> list[Cell]:
    """The layers among the records of a run, searches left out."""
    found = []
    for record in records:
        settled = "bar" in record.metrics and "stage" not in record.metrics
        if settled and not is_peer(record) and record.schedule is not None:
            found.append(Cell(record, layer_of(record), read_of(records, record), best_peer(records, record)))
    return sorted(found, key=lambda cell: (cell.part, -cell.problem.n, cell.problem.k, cell.problem.m))


def cliffs(found: Sequence[Cell]) -> dict[str, float]:
    """Cells that take longer than one with more tokens, by how many times, where that is beyond the bar."""
    over = {}
    for cell in found:
        p = cell.problem
        later = [
            c.record.us
            for c in found
            if c.record.us and (c.part, c.problem.n, c.problem.k) == (cell.part, p.n, p.k) and c.problem.m > p.m
        ]
        if cell.record.us and later and cell.record.us > CLIFF * min(later):
            over[cell.name] = cell.record.us / min(later)
    return over


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (all is of one run)
    """Each layer: its time, the read's, the best peer's."""
    for cell in cells(records):
        record = cell.record
        row = time_row(cell.name, f"{record.kernel}, us", record, record)
        yield row
        if cell.read:
            yield Row(cell.name, f"{READ}, us", None, None, cell.read, row.source)
        if cell.peer:
            yield timed_by(Row(cell.name, f"{cell.peer.kernel}, us", None, None, None), cell.peer)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """How many layers stand within their limits, the worst of the others, and cliffs."""
    found = cells(records)
    timed = [cell for cell in found if cell.record.us]
    if not timed:
        return untimed(records, f"{len(found)} layers were predicted, none was timed.")
    judged = [cell for cell in timed if cell.limits]
    bad = [cell for cell in judged if cell.missed]
    over = cliffs(timed)
    parts = [f"{len(judged) - len(bad)} of {len(judged)} layers stand within their limits"]
    if bad:
        worst = max(bad, key=lambda cell: max(cell.missed.values()))
        limit, times = max(worst.missed.items(), key=lambda item: item[1])
        parts.append(f"the farthest, {worst.name}, takes {times:.3f} times what {limit} allows")
    parts.append(
        f"{len(over)} take longer than with more tokens" if over else "no layer takes longer than with more tokens"
    )
    if len(timed) < len(found):
        parts.append(f"{len(found) - len(timed)} have no time")
    return Verdict(not bad and not over and len(timed) == len(found), "; ".join(parts) + ".")


def table(past: Archive) -> str:
    """Decode's layers on each machine against the plain read and their peers, and what the bars say."""
    every = machines_of(past.where(experiment="decode_bars", on="gpu").records)
    parts = [_of_machine(_newest(timed)) for timed in every.values()]
    return "\n\n".join(parts) or "No records yet: `lab run decode_bars --on gpu` makes them."


def _of_machine(records: Sequence[Record]) -> str:
    said = "\n".join(f"- {sentence}" for sentence in _sentences(records))
    sources = markdown.measured_on(source_of(r) for r in records if r.us)
    return f"{said}\n\n{markdown.table(_HEADINGS, list(_lines(records)))}\n\n{sources}"


def _newest(timed: Sequence[Record]) -> list[Record]:
    """The newest time of each layer, plain launches, with what was timed beside it; `large` has a line of its own."""
    raced = [r for r in timed if "stage" not in r.metrics]
    own = [r for r in raced if r.schedule is not None and "bar" in r.metrics and r.overlapping is not True]
    runs = {str(r.problem): r.run for r in own}
    return [r for r in raced if runs.get(str(r.problem)) == r.run]


def _lines(records: Sequence[Record]) -> Iterator[list[str]]:
    """A row for each format and shape: ours, in brackets the best peer's time; * marks a bar that is missed."""
    every = cells(records)
    for part in PARTS:
        of_part = [cell for cell in every if cell.part == part]
        for n, k in dict.fromkeys((cell.problem.n, cell.problem.k) for cell in of_part):
            by_batch = {cell.problem.m: cell for cell in of_part if (cell.problem.n, cell.problem.k) == (n, k)}
            reads = [cell.read for cell in by_batch.values() if cell.read]
            read = f"{min(reads):.2f}" if reads else "-"
            yield [part, f"{n:,} x {k:,}", read, *(_figures(by_batch.get(m)) for m in BATCHES)]


def _sentences(records: Sequence[Record]) -> Iterator[str]:
    """What decode_bars says of each part."""
    for part in (*PARTS, "large"):
        own = [r for r in records if r.metrics.get("bar") == part]
        if own:
            yield f"{part}: {verdict(own, Archive(())).sentence}"


def _figures(cell: Cell | None) -> str:
    if cell is None or cell.record.us is None:
        return "-"
    peer = f" ({cell.peer.us:.1f})" if cell.peer and cell.peer.us else ""
    doubt = f", {said}" if (said := note(cell.record)) else ""
    return f"{cell.record.us:.2f}{'*' if cell.missed else ''}{peer}{doubt}"
