"""lab counters: hardware counters of one launch beside theory and simulation."""

from typing import Annotated, Any

import typer

from experiments.cli._options import Json, Kernel, Schedule, Words
from experiments.cli._output import emit, number, say, table, working

Keep = Annotated[bool, typer.Option("--record/--no-record", help="Keep the record.")]


def counters(
    kernel: Kernel, words: Words = None, schedule: Schedule = "", record: Keep = True, as_json: Json = False
) -> None:
    """Read a kernel's hardware counters with Nsight Compute, beside what theory and simulation count."""
    from experiments import _chips
    from experiments.cli import _checking
    from lab.record import append, folder, provenance

    case = _checking.case_on(_chips.real_machine(), kernel, words or [], schedule)
    with working(f"counting {kernel}"):
        found = _chips.read_counters(case.kernel, case.problem, case.schedule, case.machine, provenance())
    if record:
        append(found, folder() / "counters.jsonl")
    emit(found, as_json, _render)


def _render(record: Any) -> None:
    from experiments._words import spell
    from experiments.cli._checking import counts_rows

    say(f"{record.kernel}: {spell(record.problem)}")
    columns = {"theory": record.theory, "simulated": record.simulated, "measured": record.counters}
    table(["", *columns], ([name, *map(number, values)] for name, values in counts_rows(columns)))
    say(f"measured on {record.source}")
