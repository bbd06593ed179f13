"""Two sets of records side by side: which kernel became slower."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.lookup import best_peer, is_peer
from experiments.words import spell
from lab.gpu.statistics import median_interval
from lab.record import Archive, Record, Spread, archive, read
from sim.errors import InputError

SHORT = 8  # characters of a commit that are shown
LEAST = 4  # characters of an id or a commit that may stand for it
NEWEST = 3  # runs that an error names


@dataclass(frozen=True)
class Change:
    """One kernel on one problem by one clock, the fastest schedule of each side; times in microseconds.

    `of_peer` is the best peer's time over the kernel's, within its own run. `slowdown` is after over before: of these
    ratios where both sides have one, so that a card that runs slower on a day does not count, else of the times; None
    where the kernel has no time afterwards. A slowdown is `noise` where the medians' intervals, each as wide as its
    samples leave it uncertain, overlap once the card's own speed on the day is taken out; noise is no regression. The
    spreads are of the same samples.
    """

    kernel: str
    problem: str
    clock: str
    before_us: float
    after_us: float | None
    before_of_peer: float | None
    after_of_peer: float | None
    slowdown: float | None
    noise: bool
    regression: bool
    before_spread: Spread | None = None
    after_spread: Spread | None = None


@dataclass(frozen=True)
class Kept:
    """A kept run that timed something: its id, when and where it was made, and how many times it holds."""

    run: str
    time: str
    commit: str
    experiment: str
    card: str
    timed: int


def runs(past: Archive) -> list[Kept]:
    """Every run that timed kernels, the newest first."""
    found: dict[str, list[Record]] = {}
    for record in past.records:
        if record.us is not None and record.kernel:
            found.setdefault(record.run, []).append(record)
    kept = [
        Kept(run, r[-1].time, r[-1].commit[:SHORT], r[-1].experiment or "", r[-1].card or r[-1].machine, len(r))
        for run, r in found.items()
    ]
    return sorted(kept, key=lambda one: one.time, reverse=True)


def load(name: str) -> Archive:
    """The records of a file, else of the kept run with that id, else of all runs of that commit.

    The first characters of an id or a commit do where they fit one alone. Raises InputError where there is nothing.
    """
    if name and Path(name).exists():
        return read([Path(name)])
    past = archive()
    for field in ("run", "commit"):
        known = {getattr(record, field) for record in past.records}
        fitting = sorted(one for one in known if one == name or (len(name) >= LEAST and one.startswith(name)))
        if len(fitting) > 1:
            raise InputError(f"{name!r} begins more than one {field}: {', '.join(fitting)}")
        if fitting:
            return past.where(**{field: fitting[0]})
    newest = ", ".join(f"{one.run} ({one.experiment}, {one.commit})" for one in runs(past)[:NEWEST])
    raise InputError(
        f"{name!r} is neither a records file nor the id or commit of a kept run; "
        f"the newest runs: {newest or 'none'} (all: lab compare)"
    )


def compare(before: Sequence[Record], after: Sequence[Record], threshold: float) -> list[Change]:
    """Every kernel that was timed before, each against its times on the same machine and with launches alike.

    Raises InputError where nothing was, or nothing of it is there afterwards.
    """
    old, new = _fastest(before), _fastest(after)
    if not old:
        raise InputError("the records before hold no timed kernel")
    if not {(r.kernel, str(r.problem)) for r in after} & {(r.kernel, str(r.problem)) for r in before if not is_peer(r)}:
        raise InputError("the two sets of records have no kernel on the same problem in common")
    otherwise = {(r.kernel, str(r.problem), r.clock) for r in new.values()}
    changes = []
    for key, was in old.items():
        now = new.get(key)
        if now is None and (was.kernel, str(was.problem), was.clock) in otherwise:
            continue  # timed on another machine, or launched in another way: neither slower nor lost
        was_of_peer, now_of_peer = _of_peer(before, was), _of_peer(after, now) if now else None
        slowdown, noise = None, False
        if now and now.us and was.us:
            slowdown = was_of_peer / now_of_peer if was_of_peer and now_of_peer else now.us / was.us
            noise = _within_noise(was, now, slowdown)
        changes.append(
            Change(
                kernel=was.kernel or "",
                problem=spell(was.problem or {}),
                clock=was.clock or "",
                before_us=was.us or 0.0,
                after_us=now.us if now else None,
                before_of_peer=was_of_peer,
                after_of_peer=now_of_peer,
                slowdown=slowdown,
                noise=noise,
                regression=slowdown is None or (slowdown > 1 + threshold and not noise),
                before_spread=was.spread,
                after_spread=now.spread if now else None,
            )
        )
    if not changes:
        raise InputError("what both sets of records timed ran on different machines or with other launches")
    return changes


def _within_noise(was: Record, now: Record, slowdown: float) -> bool:
    """Whether both medians may be the same, the later times brought to the earlier day's speed."""
    if not (was.samples_us and now.samples_us and was.us and now.us):
        return False
    day = now.us / was.us / slowdown  # how much slower everything was: 1 without peers
    was_low, was_high = median_interval(was.samples_us)
    now_low, now_high = median_interval(now.samples_us)
    return now_low / day <= was_high and was_low <= now_high / day


def _fastest(records: Sequence[Record]) -> dict[str, Record]:
    """The fastest timed record of each kernel and problem by machine, clock and overlapping or plain launches."""
    found: dict[str, Record] = {}
    for record in records:
        if record.us is not None and record.kernel and not is_peer(record):
            key = f"{record.kernel} {record.problem} {record.machine} {record.clock} {record.overlapping}"
            if key not in found or record.us < (found[key].us or 0.0):
                found[key] = record
    return found


def _of_peer(records: Sequence[Record], record: Record) -> float | None:
    peer = best_peer(records, record)
    return peer.us / record.us if peer and peer.us and record.us else None
