"""lab check: a kernel against its reference and its theory, on any chip."""

from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli.options import Deadline, Json, Kernel, Machine, On, Schedule, Where, Words
from experiments.cli.output import conclude, emit, number, predicted, say, table
from experiments.cli.waiting import working

Ptx = Annotated[bool, typer.Option("--ptx", help="Also execute the compiled PTX in the emulator, looking for hazards.")]
Seeds = Annotated[
    int | None,
    typer.Option(min=1, max=1000, help="Interleavings that the emulator tries; implies --ptx.", show_default="1"),
]
Mutants = Annotated[
    bool,
    typer.Option("--mutants", help="Also break the PTX in every systematic way; each must be caught. Implies --ptx."),
]
Trace = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a trace for Perfetto of who waited for whom; implies --ptx.")
]

SHOWN = 5  # interleavings whose wrong elements are said; JSON has all


def check(
    kernel: Kernel,
    words: Words = None,
    schedule: Schedule = "",
    machine: Machine = "h100",
    on: On = Where.SIM,
    ptx: Ptx = False,
    seeds: Seeds = None,
    mutants: Mutants = False,
    trace: Trace = None,
    deadline: Deadline = 120.0,
    as_json: Json = False,
) -> int:
    """Check a kernel: its result against the reference, its counts against theory. Exit code 1 where one is wrong.

    Its device code is compiled for the machine, and executed with --ptx or on a GPU.
    """
    from experiments.cli import checking
    from experiments.running import backends

    words = words or []
    emulated = ptx or mutants or seeds is not None or trace is not None
    if on is Where.GPU:
        subject = checking.subject_on(backends.real_machine(), kernel, words, schedule)
    else:
        subject = checking.subject(kernel, words, schedule, machine)
    with working(f"checking {kernel}") as now:
        now("compiling its device code with NVRTC")
        device_code = checking.compiled(subject)
        now("running it on the GPU" if on is Where.GPU else "running its tile simulation, which is compiled at first")
        document = checking.on_gpu(subject, schedule, deadline) if on is Where.GPU else checking.on_sim(subject)
        document |= {"compiled": device_code, "executed": on is Where.GPU or emulated}
        if emulated:
            now("executing its PTX in the emulator, which is compiled at first")
            document |= checking.on_ptx(subject, seeds or 1)
            document["passed"] = document["passed"] and document["ptx_passed"]
        if trace:
            checking.write_trace(subject, trace)
        if mutants and document["passed"]:  # a kernel that is wrong itself proves nothing
            now("breaking its PTX in every systematic way")
            document |= checking.mutants(subject, seeds or 1)
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
    say(predicted(document["predicted"]))
    if document["note"]:
        say(document["note"])
    if not document["executed"]:
        arch = document["compiled"]["arch"]
        say(f"the device code was compiled for {arch} and not executed; --ptx executes it in the emulator")
    for counted, found in (("simulated", "disagreements"), ("PTX", "ptx_disagreements")):
        for name, pair in document.get(found, {}).items():
            say(f"{name} disagrees: theory {pair['theory']:,}, {counted} {pair['counted']:,}")
    if "seeds" in document:
        hazards = len(document["hazards"])
        say(f"the emulator ran the compiled PTX in {document['seeds']} interleavings and met {hazards} hazards")
    for hazard in document["hazards"]:
        say(f"hazard in interleaving {hazard['seed']}: {hazard['kind']}: {hazard['message']}")
    if "mutants" in document:
        headings = ["mutant", "at", "verdict", "why"]
        rows_of = ([m["change"], m["source"], m["verdict"], m["why"]] for m in document["mutants"])
        table(headings, rows_of, numbers_from=len(headings))
    _say_what_is_wrong(document, f"on {document['on']}")
    for wrong in document.get("ptx_wrong", [])[:SHOWN]:
        _say_what_is_wrong(wrong, f"PTX in interleaving {wrong['seed']}")
    errors = [_error(document["error"])]
    if "seeds" in document:
        errors.append(f"{_error(document['ptx_error'])} in PTX")
    conclude(document["passed"], f"largest error {', '.join(errors)}")


def _say_what_is_wrong(check: dict[str, Any], where: str) -> None:
    if check["first_mismatch"] is not None:
        first = f"{check['mismatched']}{list(check['first_mismatch'])}"
        say(f"{where}: {check['mismatches']:,} wrong elements, the first {first}; error {_error(check['error'])}")
    if not check["guards_intact"]:
        say(f"{where}: it wrote outside its output")


def _error(error: float | None) -> str:
    return f"{error:.3g} of the bound" if error is not None and isfinite(error) else "not finite"
