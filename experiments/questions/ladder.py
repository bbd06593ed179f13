"""The rungs of a ladder: the kernels of a family from the ground up."""

from collections.abc import Sequence

from experiments.lookup import is_peer
from lab import tuned
from lab.choice import ancestors, best_guesses
from lab.kernel import Kernel
from lab.problems import Linear
from lab.record import Record
from sim.errors import InputError
from sim.machine import Machine


def climb(problem: Linear, target: Machine, family: str) -> list[Kernel]:
    """Every kernel of a family that takes the problem, each after those that it improves on; maybe none."""
    try:
        kernels = [guess.kernel for guess in best_guesses(problem, target) if guess.kernel.family == family]
    except InputError:
        return []
    return sorted(kernels, key=lambda kernel: (len(ancestors(kernel)), kernel.name))


def tuned_fields(kernel: Kernel, problem: Linear, target: Machine) -> dict[str, int | str]:
    """The tuned table's schedule where that names this kernel, else nothing: its best guess."""
    held = tuned.lookup(problem, target)
    return held[1] if held and held[0] == kernel.name else {}


def newest_rungs(records: Sequence[Record]) -> list[Record]:
    """The rungs, then their peers, of the commit and card that timed a ladder last, else of its last simulation.

    Every rung is a run of its own, with its peers; of those with the same kernel, problem and note the last one stands.
    """
    timed = [record for record in records if record.us is not None] or list(records)
    if not timed:
        return []
    last = (timed[-1].on, timed[-1].machine, timed[-1].commit)
    same = [record for record in records if (record.on, record.machine, record.commit) == last]
    rungs = [record for record in same if not is_peer(record) and record.schedule is not None]
    newest = {(r.kernel, str(r.problem), r.metrics.get("note")): r for r in rungs}
    return [*sorted(newest.values(), key=lambda r: int(r.metrics["rung"] or 0)), *filter(is_peer, same)]
