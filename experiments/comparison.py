"""Two sets of records side by side: which kernel became slower."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.lookup import best_peer, is_peer
from experiments.words import spell
from lab.gpu.statistics import median_interval
from lab.record import Archive, Record, archive, read
from sim.errors import InputError


@dataclass(frozen=True)
class Change:
    """One kernel on one problem by one clock, the fastest schedule of each side; times in microseconds.

    `of_peer` is the best peer's time over the kernel's, within its own run. `slowdown` is after over before: of these
    ratios where both sides have one, so that a card that runs slower on a day does not count, else of the times; None
    where the kernel has no time afterwards. A slowdown is `noise` where the medians' intervals, each as wide as its
    samples leave it uncertain, overlap once the card's own speed on the day is taken out; noise is no regression.
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


def load(name: str) -> Archive:
    """The records of a file, or of the run with that id; raises InputError where there is neither."""
    if Path(name).exists():
        return read([Path(name)])
    found = archive().where(run=name)
    if not found.records:
        raise InputError(f"{name!r} is neither a records file nor the id of a kept run")
    return found


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
