"""Mutants of anyone's kernel: a described launch whose PTX is broken in every systematic way."""

from collections.abc import Iterator, Sequence
from functools import reduce
from math import inf, prod
from operator import add

from lab.emulation.check import Launches, Reference, compared, launches_of, run_once
from lab.emulation.description import Launch, Struct, TensorMap
from lab.emulation.source import Module
from lab.mutants import NO_BOX, Judged, Outcome, judge
from sim.machine import Machine

_MAX_STEPS = 1 << 34  # warp instructions


def judge_described(
    module: Module, entry: str, launch: Launches, machine: Machine, seeds: int, reference: Reference | None
) -> Iterator[Judged]:
    """Every mutant of every kernel of a description; the inputs are those of the first interleaving.

    Raises ValueError where the kernel itself has hazards or a wrong result.
    """
    return judge(_EntrySpecimen(module, entry, launch, machine, reference), seeds)


class _EntrySpecimen:
    def __init__(
        self, module: Module, entry: str, launch: Launches, machine: Machine, reference: Reference | None
    ) -> None:
        self.name = entry
        self._module, self._entry, self._machine, self._reference = module, entry, machine, reference
        self._launches = launches_of(launch, 0)
        by_entry = {one.entry or entry: one for one in self._launches}
        self._entries = list(by_entry)
        self.parts = [(module.names[name], _smallest_box(one)) for name, one in by_entry.items()]
        self.ptx = [module.ptx] * len(self.parts)

    def run(self, ptx: Sequence[str], seed: int, max_steps: int = _MAX_STEPS, check: bool = True) -> Outcome:
        texts = dict(zip(self._entries, ptx, strict=True))
        memory, done = run_once(
            self._module, self._entry, self._launches, self._machine, seed, inf, texts, max_steps=max_steps, check=check
        )
        outputs = memory.outputs(self._module.names)
        expected = self._reference(memory.initial()) if self._reference else {}
        return Outcome(
            hazards=tuple(hazard for one in done for hazard in one.hazards),
            counts=reduce(add, (one.counts for one in done)),
            outputs={name: array.tobytes() for name, array in outputs.items()},
            passed=not any(d.mismatches for d in compared(expected, outputs).values()),
            steps=sum(one.statistics.warp_instructions for one in done),
            reads=frozenset((at, *pair) for at, one in enumerate(done) for pair in one.reads),
        )

    def complaint(self, outcome: Outcome) -> str | None:
        if outcome.hazards:
            return ", ".join(dict.fromkeys(hazard.kind for hazard in outcome.hazards))
        return None if outcome.passed else "wrong result"


def _smallest_box(launch: Launch) -> int:
    """Bytes of the smallest box of the tensor maps among a launch's arguments and their structs."""
    left, sizes = list(launch.args), []
    while left:
        value = left.pop()
        if isinstance(value, Struct):
            left += value.fields
        elif isinstance(value, TensorMap):
            sizes.append(prod(value.box) * value.array.value.itemsize)
    return min(sizes, default=NO_BOX)
