"""The search for the best kernel and schedule: all candidates in a short race, the best of them in a long one."""

from collections.abc import Mapping, Sequence
from statistics import median

from msgspec import structs

from lab.gpu.bench import Bench, Candidate, Peer
from lab.gpu.timing import Clock
from lab.record import Record, Value
from lab.tuned import FINAL, SEARCH

SEARCH_ROUNDS = 5  # interleaved samples of each candidate: a burst of noise hits all of a round alike
WORTH = 1.25  # times the fastest: what is slower in the short race does not win the long one
FINALISTS = 5


def search(
    bench: Bench, entries: Sequence[Candidate], peers: Mapping[str, Peer], clock: Clock, rounds: int
) -> list[Record]:
    """Race all entries, then the best ones at `rounds` rounds beside the peers: the records of both stages.

    Their metrics say which `stage` they are of, and in the last one how many `candidates` ran and their `spread`, the
    median time over the best. Raises as `Bench.race` does.
    """
    short = bench.race(entries, {}, (clock,), SEARCH_ROUNDS, facts={"stage": SEARCH})
    times = {
        entry: record.us for entry, record in zip(entries, short, strict=True) if record.us is not None
    }  # one clock and one pace: one record an entry, in their order
    brief = [structs.replace(record, theory=None) for record in short]  # hundreds, and it follows from the schedule
    facts: dict[str, Value] = {"stage": FINAL, "candidates": len(times)}
    if times:
        facts["spread"] = median(times.values()) / min(times.values())
    return [*brief, *bench.race(best(times), peers, (clock,), rounds, facts=facts)]


def best(times: Mapping[Candidate, float], most: int = FINALISTS) -> list[Candidate]:
    """The fastest entries, at most so many, without those that are not worth a second race."""
    limit = WORTH * min(times.values(), default=0.0)
    ranked = sorted((us, number, entry) for number, (entry, us) in enumerate(times.items()) if us <= limit)
    return [entry for _, _, entry in ranked[:most]]
