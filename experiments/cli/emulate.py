"""lab emulate: anyone's kernel in the PTX emulator."""

from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli.options import Json, Machine
from experiments.cli.output import conclude, emit, number, say, table
from experiments.cli.waiting import working

File = Annotated[
    Path,
    typer.Argument(metavar="FILE.py", help="What is launched: SOURCE, ENTRY, launch(rng), perhaps reference(arrays)."),
]
Seeds = Annotated[int, typer.Option(min=1, max=100_000, help="Interleavings that are tried.")]
Include = Annotated[list[Path] | None, typer.Option(metavar="DIR", help="A folder of headers; may be repeated.")]
Define = Annotated[list[str] | None, typer.Option(metavar="NAME[=VALUE]", help="A macro; may be repeated.")]
Allow = Annotated[list[str] | None, typer.Option(metavar="KIND", help="A kind of hazard that may be; may be repeated.")]
Trace = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a trace for Perfetto of one interleaving.")]
CountsOf = Annotated[bool, typer.Option("--counts", help="Also say what each source line executed and moved.")]
Mutants = Annotated[bool, typer.Option("--mutants", help="Also break the PTX in every systematic way.")]
Deadline = Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="All interleavings end past it.")]

MUTANT_SEEDS = 3  # interleavings of each mutant


def emulate(
    file: File,
    seeds: Seeds = 20,
    include: Include = None,
    define: Define = None,
    allow: Allow = None,
    trace: Trace = None,
    deadline: Deadline = 120.0,
    mutants: Mutants = False,
    counts: CountsOf = False,
    machine: Machine = "h100",
    as_json: Json = False,
) -> int:
    """Execute a kernel of CUDA C++ or PTX on the CPU, in many interleavings, and report its hazards.

    Exit code 1 where it has one, or where an output is not what the reference says; 2 where it is refused.
    """
    from experiments.cli import emulating

    with working(f"emulating {file.name}") as now:
        subject = emulating.subject(file, include or [], define or [], allow or [], machine)
        now("executing it in the emulator, which is compiled at first")
        document = emulating.checked(subject, seeds, deadline, counts)
        if trace:
            emulating.write_trace(subject, trace, deadline)
        if mutants and document["passed"]:  # a kernel that is wrong itself proves nothing
            now("breaking its PTX in every systematic way")
            document |= emulating.mutants(subject, MUTANT_SEEDS)
            document["passed"] = not document["mutants_missed"]
    emit(document, as_json, _render)
    return 0 if document["passed"] else 1


def _render(document: dict[str, Any]) -> None:
    moved = {name: value for name, value in document["counts"].items() if value}
    if moved:
        table(["", "counted"], [[name, number(value)] for name, value in moved.items()])
    for line in document["printed"]:
        say(line.rstrip("\n"))
    for what in ("hazards", "allowed"):
        for hazard in document[what]:
            times = f" ({hazard['count']:,} times)" if hazard["count"] > 1 else ""
            say(f"{'allowed ' if what == 'allowed' else ''}{hazard['kind']}{times}: {hazard['message']}")
    for name, found in document["outputs"].items():
        if found["mismatches"]:
            say(f"{name}: {found['mismatches']:,} wrong elements; error {found['error']:.3g} of the bound")
    if document.get("lines"):
        rows = ([line["line"], *map(number, list(line.values())[1:])] for line in document["lines"])
        table([name.replace("_", " ") for name in document["lines"][0]], rows)
    if "mutants" in document:
        headings = ["mutant", "at", "verdict", "why"]
        rows = ([m["change"], m["source"], m["verdict"], m["why"]] for m in document["mutants"])
        table(headings, rows, numbers_from=len(headings))
    truncated = "; the deadline came before the end" if document["truncated"] else ""
    conclude(
        document["passed"], f"{document['entry']} in {document['seeds']} interleavings: "
        f"{len(document['hazards'])} hazards{truncated}",
    )  # fmt: skip
