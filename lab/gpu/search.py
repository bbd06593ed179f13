"""The search for the best kernel and schedule: all candidates in a short race, unchecked, the best in a long one."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TypeVar

from lab.gpu.bench import Bench, Candidate, Peer, shared_fields
from lab.gpu.timing import Clock
from lab.record import Record, Value
from lab.tuned import FINAL, SEARCH

SEARCH_ROUNDS = 5  # interleaved samples of each candidate: a burst of noise hits all of a round alike
SEARCH_SAMPLE_US = 500.0  # of a graph: its start then costs one or two percent, of all candidates alike
WORTH = 1.25  # times the fastest: what is slower in the short race does not win the long one
FINALISTS = 5

T = TypeVar("T")


def search(
    bench: Bench,
    entries: Sequence[Candidate],
    peers: Mapping[str, Peer],
    clock: Clock,
    rounds: int,
    kept: Sequence[Candidate] = (),
) -> list[Record]:
    """Time all entries, then race the best ones at `rounds` rounds beside the peers: the records of both stages.

    Those `kept` are in the last race however the first one ends for them, as far as they run.

    Their metrics say which `stage` they are of. The first is one record, with the time of each entry that ran; those of
    the last say how many `candidates` that were and their `spread`, the median time over the best. Raises as
    `Bench.race` does.
    """
    times = bench.times(entries, clock, SEARCH_ROUNDS, SEARCH_SAMPLE_US)
    tried = {entry.name: us for entry, us in times.items()}
    shared = shared_fields(bench.problem, bench.machine, bench.experiment)
    searched = Record(**shared, clock=clock.value, tried=tried, metrics={"stage": SEARCH, "rounds": SEARCH_ROUNDS})
    facts: dict[str, Value] = {"stage": FINAL, "candidates": len(times)}
    if times:
        facts["spread"] = median(times.values()) / min(times.values())
    finalists = list(dict.fromkeys([*best(times), *(entry for entry in kept if entry in times)]))
    return [searched, *bench.race(finalists, peers, (clock,), rounds, facts=facts)]


def best(times: Mapping[T, float], most: int = FINALISTS) -> list[T]:
    """The fastest entries, at most so many, without those that are not worth a second race."""
    limit = WORTH * min(times.values(), default=0.0)
    ranked = sorted((us, number, entry) for number, (entry, us) in enumerate(times.items()) if us <= limit)
    return [entry for _, _, entry in ranked[:most]]
