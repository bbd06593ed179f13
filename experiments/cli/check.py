"""lab check: a kernel against its reference and its theory, on any chip."""

from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli.options import Deadline, Json, Kernel, Machine, On, Schedule, Where, Words
from experiments.cli.output import emit, number, say, table, working

Ptx = Annotated[bool, typer.Option("--ptx", help="Also execute the compiled PTX in the emulator, looking for hazards.")]
Seeds = Annotated[int, typer.Option(min=1, max=1000, help="Interleavings that the emulator tries.")]
Mutants = Annotated[
    bool, typer.Option("--mutants", help="Also break the PTX in every systematic way; each must be caught.")
]


Trace = Annotated[
    Path | None, typer.Option(metavar="FILE", help="With --ptx: write a trace for Perfetto of who waited for whom.")
]


def check(
    kernel: Kernel,
    words: Words = None,
    schedule: Schedule = "",
    machine: Machine = "h100",
    on: On = Where.SIM,
    ptx: Ptx = False,
    seeds: Seeds = 1,
    mutants: Mutants = False,
    trace: Trace = None,
    deadline: Deadline = 120.0,
    as_json: Json = False,
) -> int:
    """Check a kernel: its result against the reference, its counts against theory. Exit code 1 where one is wrong."""
    from experiments.cli import checking
    from experiments.running import backends

    words = words or []
    if on is Where.GPU:
        subject = checking.subject_on(backends.real_machine(), kernel, words, schedule)
    else:
        subject = checking.subject(kernel, words, schedule, machine)
    with working(f"checking {kernel}"):
        document = checking.on_gpu(subject, schedule, deadline) if on is Where.GPU else checking.on_sim(subject)
        if ptx or trace or mutants:
            document |= checking.on_ptx(subject, seeds)
            document["passed"] = document["passed"] and document["ptx_passed"]
        if trace:
            checking.write_trace(subject, trace)
        if mutants and document["passed"]:  # a kernel that is wrong itself proves nothing
            document |= checking.mutants(subject, seeds)
            document["passed"] = document["passed"] and not document["mutants_missed"]
    emit(document, as_json, _render)
    return 0 if document["passed"] else 1


def _render(document: dict[str, Any]) -> None:
    from experiments.cli.checking import counts_rows
    from experiments.words import spell
    from sim.machine import machine

    say(f"{document['kernel']}: {spell(document['problem'])}")
    say(f"schedule {spell(document['schedule'])}; {machine(document['machine']).title}; on {document['on']}")
    columns = {name: document[name] for name in ("theory", "simulated", "ptx") if document[name]}
    rows = ([name, *map(number, values)] for name, values in counts_rows(columns))
    table(["", *columns], rows)
    if document["note"]:
        say(document["note"])
    for name, pair in {**document["disagreements"], **document.get("ptx_disagreements", {})}.items():
        say(f"{name} disagrees: theory {pair['theory']:,}, counted {pair['counted']:,}")
    if "seeds" in document:
        hazards = len(document["hazards"])
        say(f"the emulator ran the compiled PTX in {document['seeds']} interleavings and met {hazards} hazards")
    for hazard in document["hazards"]:
        say(f"hazard in interleaving {hazard['seed']}: {hazard['kind']}: {hazard['message']}")
    if "mutants" in document:
        headings = ["mutant", "at", "verdict", "why"]
        rows_of = ([m["change"], m["source"], m["verdict"], m["why"]] for m in document["mutants"])
        table(headings, rows_of, numbers_from=len(headings))
    if document["first_mismatch"] is not None:
        say(f"{document['mismatches']:,} wrong elements, the first at {tuple(document['first_mismatch'])}")
    if not document["guards_intact"]:
        say("it wrote outside its output")
    error = "not finite" if document["error"] is None else f"{document['error']:.3g} of the bound"
    say(f"{'passed' if document['passed'] else 'FAILED'}: largest error {error}")
