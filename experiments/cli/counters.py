"""lab counters: hardware counters of one launch beside theory and simulation."""

from typing import Annotated, Any

import typer

from experiments.cli.options import Json, Kernel, Schedule, Words
from experiments.cli.output import emit, number, say, table
from experiments.cli.waiting import working

Keep = Annotated[bool, typer.Option("--record/--no-record", help="Keep the record.")]


def counters(
    kernel: Kernel, words: Words = None, schedule: Schedule = "", record: Keep = True, as_json: Json = False
) -> None:
    """Read a kernel's hardware counters with Nsight Compute, beside what theory and simulation count."""
    from experiments.cli import checking
    from experiments.running import backends
    from lab.record import append, folder, provenance

    subject = checking.subject_on(backends.real_machine(), kernel, words or [], schedule)
    checking.compiled(subject)
    with working(f"counting {kernel}"):
        parts = subject.kernel, subject.problem, subject.schedule
        (found,) = backends.read_counters([parts], subject.machine, provenance())
    if record:
        append(found, folder() / "counters.jsonl")
    emit(found, as_json, _render)


def _render(record: Any) -> None:
    from experiments.cli.checking import counts_rows
    from experiments.words import spell

    say(f"{record.kernel}: {spell(record.problem)}")
    columns = {"theory": record.theory, "simulated": record.simulated, "measured": record.counters}
    table(["", *columns], ([name, *map(number, values)] for name, values in counts_rows(columns)))
    say(f"measured on {record.source}")
