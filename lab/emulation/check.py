"""Anyone's kernel on the emulated chip: many interleavings, its outputs, hazards and counts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import inf
from operator import add
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.emulation.description import Launch
from lab.emulation.layout import Memory
from lab.emulation.source import Module, module_of, source_of
from lab.problems import Estimate
from lab.verify import compare_output
from sim.counts import Counts
from sim.emulator import Emulation, Hazard, Line, decode, execute, interpreter
from sim.errors import InputError
from sim.machine import H100, Machine
from sim.machine import machine as machine_named

Launches = Launch | Sequence[Launch] | Callable[[np.random.Generator], Launch | Sequence[Launch]]
Reference = Callable[[dict[str, NDArray]], Mapping[str, tuple[Any, Any]]]


@dataclass(frozen=True)
class Difference:
    """An output against its reference: the largest |difference| / bound, passing up to 1, and the wrong elements."""

    error: float
    mismatches: int
    first: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Found:
    """A hazard, how often it was met in all interleavings, and the seed of the first."""

    hazard: Hazard
    count: int
    seed: int

    @property
    def kind(self) -> str:
        return self.hazard.kind

    def as_dict(self) -> dict[str, Any]:
        other = self.hazard.other
        return {
            "kind": self.kind,
            "first": str(self.hazard.access),
            "second": str(other) if other else None,
            "count": self.count,
            "message": self.hazard.message,
            "instruction": self.hazard.access.instruction,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Check:
    """What `emulate` found: `outputs` of the first interleaving by name, hazards, counts of all its launches.

    `truncated` says that the deadline came before the end. `differences` compares outputs with the reference, over all
    interleavings; `allowed` are hazards that were met and allowed; `printed` is each printf of the first,
    `lines` what each source line did in it, if asked.
    """

    entry: str
    outputs: dict[str, NDArray]
    hazards: tuple[Found, ...]
    truncated: bool
    counts: Counts
    seeds: int
    differences: dict[str, Difference] = field(default_factory=dict)
    allowed: tuple[Found, ...] = ()
    printed: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all ran to its end without a hazard that is not allowed and without a wrong output."""
        return not self.hazards and not self.truncated and not any(d.mismatches for d in self.differences.values())

    def as_dict(self) -> dict[str, Any]:
        """The document of `lab emulate --json`."""
        compared = {name: self.differences.get(name) for name in self.outputs}
        return {
            "entry": self.entry,
            "passed": self.passed,
            "outputs": {
                name: {"error": d.error if d else None, "mismatches": d.mismatches if d else None}
                for name, d in compared.items()
            },
            "hazards": [found.as_dict() for found in self.hazards],
            "allowed": [found.as_dict() for found in self.allowed],
            "printed": self.printed,
            "counts": self.counts.as_dict(),
            "seeds": self.seeds,
            "truncated": self.truncated,
        }


def emulate(
    source: str | Path,
    entry: str,
    launch: Launches,
    includes: Sequence[str | Path] = (),
    defines: Mapping[str, object] | None = None,
    seeds: int = 20,
    *,
    reference: Reference | None = None,
    allow: Iterable[str] = (),
    deadline_s: float = inf,
    profiled: bool = False,
    machine: Machine | str = H100,
    folder: str | Path = ".",
) -> Check:
    """Run a kernel of CUDA C++ or PTX, text or file, in `seeds` random interleavings, each on fresh inputs.

    `launch` is a Launch, several in order, or what makes them of a random generator. `reference` gives value and bound
    of each output from the arrays' initial values. Hazards of the kinds in `allow` do not count against it. `profiled`
    asks for what each source line did. Raises
    KernelError where it does not compile and InputError for a launch that does not fit or PTX that is not known.
    """
    machine = machine if isinstance(machine, Machine) else machine_named(machine)
    first = launches_of(launch, 0)
    entries = dict.fromkeys(one.entry or entry for one in first)
    symbols = dict.fromkeys(s.name for one in first for s in one.symbols)
    text = source_of(source, Path(folder))
    module = module_of(text, entries, symbols, includes, defines or {}, machine)
    return check_module(module, entry, launch, machine, range(seeds), reference, frozenset(allow), deadline_s, profiled)


def launches_of(launch: Launches, seed: int) -> list[Launch]:
    """The launches of one interleaving; raises InputError for anything else than launches."""
    made = launch(np.random.default_rng(seed)) if callable(launch) else launch
    found = [made] if isinstance(made, Launch) else list(made)
    if not found or not all(isinstance(one, Launch) for one in found):
        raise InputError("launch gives neither a lab.Launch nor several")
    return found


def check_module(
    module: Module,
    entry: str,
    launch: Launches,
    machine: Machine,
    seeds: range,
    reference: Reference | None = None,
    allow: frozenset[str] = frozenset(),
    deadline_s: float = inf,
    profiled: bool = False,
) -> Check:
    """The same of a module that is compiled; a deadlock, a livelock or the deadline ends it early."""
    interpreter()  # its compilation is none of the deadline's
    end = monotonic() + deadline_s
    met: dict[tuple[str, str, str], Found] = {}
    differences: dict[str, Difference] = {}
    outputs: dict[str, NDArray] = {}
    printed: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()
    counts, truncated, done = Counts.zero(), False, 0
    for seed in seeds:
        memory, emulations = run_once(
            module, entry, launches_of(launch, seed), machine, seed, end, profiled=profiled and not done
        )
        found = memory.outputs(module.names)
        if done == 0:
            outputs, counts = found, reduce(add, (e.counts for e in emulations))
            lines = tuple(line for e in emulations for line in e.lines)
            printed = tuple(line for e in emulations for line in e.printed)
        for hazard in (h for e in emulations for h in e.hazards):
            _note(met, hazard, seed)
        truncated = any(e.truncated for e in emulations)
        done += 1
        if reference:
            for name, one in compared(reference(memory.initial()), found).items():
                known = differences.get(name, Difference(0.0, 0))
                worst, wrong = max(known.error, one.error), known.mismatches + one.mismatches
                differences[name] = Difference(worst, wrong, known.first or one.first)
        truncated |= monotonic() > end and done < len(seeds)
        if truncated:
            break
    hazards = [f for f in met.values() if f.kind not in allow]
    return Check(
        entry=entry,
        outputs=outputs,
        hazards=tuple(hazards),
        truncated=truncated,
        counts=counts,
        seeds=done,
        differences=differences,
        allowed=tuple(f for f in met.values() if f.kind in allow),
        printed=printed,
        lines=lines,
    )


def run_once(
    module: Module,
    entry: str,
    launches: Sequence[Launch],
    machine: Machine,
    seed: int,
    end: float,
    instead: Mapping[str, str] | None = None,
    **options: Any,
) -> tuple[Memory, list[Emulation]]:
    """One interleaving of the launches, one after the other, until the clock says `end`; (memory, what each did).

    `instead` is other PTX for some entries.
    """
    memory = Memory(launches)
    emulations = []
    for one in launches:
        name, ptx = module.names[one.entry or entry], (instead or {}).get(one.entry or entry, module.ptx)
        sizes = [p.size for p in decode(ptx, name, len(memory.buffers)).parameters]
        image = memory.image(one, name, sizes, module.names)
        left = max(end - monotonic(), 0.0)
        emulations.append(execute(ptx, image, machine, seed=seed, deadline_s=left, **options))
    return memory, emulations


def _note(met: dict[tuple[str, str, str], Found], hazard: Hazard, seed: int) -> None:
    key = (hazard.kind, hazard.access.line, hazard.other.line if hazard.other else "")
    known = met.get(key, Found(hazard, 0, seed))
    met[key] = Found(known.hazard, known.count + hazard.count, known.seed)


def compared(expected: Mapping[str, Any], found: Mapping[str, NDArray]) -> dict[str, Difference]:
    """Each output that has a reference beside it; raises InputError where they do not match in name or shape."""
    differences = {}
    for name, (value, bound) in expected.items():
        if name not in found:
            raise InputError(f"the reference gives {name}; the outputs are {', '.join(found) or 'none'}")
        wanted = np.asarray(value)
        if wanted.shape != found[name].shape:
            raise InputError(f"the reference of {name} has shape {wanted.shape}; the output has {found[name].shape}")
        if wanted.dtype.kind != "f":
            wanted = wanted.astype(np.float64)
        one = compare_output(Estimate(wanted, np.asarray(bound)), found[name], "", name)
        differences[name] = Difference(one.error, one.mismatches, one.first_mismatch)
    return differences
