"""The documents of `lab emulate`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from lab.emulation.check import check_module, launches_of, run_once
from lab.emulation.file import Description, described
from lab.emulation.mutants import judge_described
from lab.emulation.source import Module, module_of, source_of
from lab.mutants import Verdict
from sim.emulator import to_chrome_trace
from sim.errors import EnvironmentFailure
from sim.machine import Machine
from sim.machine import machine as machine_named


class Subject:
    """A description, its compiled module, and the machine it is emulated for."""

    def __init__(self, said: Description, module: Module, allow: Sequence[str], machine: Machine) -> None:
        self.said, self.module, self.machine = said, module, machine
        self.allow = frozenset((*said.allow, *allow))


def subject(file: Path, includes: Sequence[Path], defines: Sequence[str], allow: Sequence[str], chip: str) -> Subject:
    """Read and compile what a file describes; raises InputError or KernelError."""
    machine = machine_named(chip)
    said = described(file)
    launches = launches_of(said.launch, 0)
    given: dict[str, object] = {n: v if eq else None for n, eq, v in (d.partition("=") for d in defines)}
    module = module_of(
        source_of(said.source, file.parent),
        dict.fromkeys(one.entry or said.entry for one in launches),
        dict.fromkeys(s.name for one in launches for s in one.symbols),
        [*includes, *said.includes],
        {**said.defines, **given},
        machine,
    )
    return Subject(said, module, allow, machine)


def checked(about: Subject, seeds: int, deadline_s: float, counts: bool) -> dict[str, Any]:
    """Run the interleavings; with `counts` also what each source line did."""
    said = about.said
    found = check_module(
        about.module,
        said.entry,
        said.launch,
        about.machine,
        range(seeds),
        said.reference,
        about.allow,
        deadline_s,
        counts,
    )
    return found.as_dict() | ({"lines": [asdict(line) for line in found.lines]} if counts else {})


def mutants(about: Subject, seeds: int) -> dict[str, Any]:
    """Break the PTX in every systematic way: each break must be caught, or be shown to be harmless."""
    said = about.said
    judged = list(judge_described(about.module, said.entry, said.launch, about.machine, seeds, said.reference))
    return {
        "mutants": [one.as_dict() for one in judged],
        "mutants_missed": sum(one.verdict is Verdict.MISSED for one in judged),
    }


def write_trace(about: Subject, path: Path, deadline_s: float) -> None:
    """Write the first interleaving as a Chrome trace; launches are its processes."""
    launches = launches_of(about.said.launch, 0)
    end = monotonic() + deadline_s
    _, done = run_once(about.module, about.said.entry, launches, about.machine, 0, end, trace=True)
    events = [{**e, "pid": i} for i, one in enumerate(done) for e in to_chrome_trace(one)["traceEvents"]]
    try:
        path.write_bytes(msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ns"}))
    except OSError as error:
        raise EnvironmentFailure(f"the trace cannot be written to {path}: {error.strerror}") from error
