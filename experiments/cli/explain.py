"""lab explain: a problem's bills, intensity, regime and floor, before anything runs."""

from functools import cache, partial
from typing import Annotated, Any

import typer

from experiments.cli.options import Json, Schedule, Words
from experiments.cli.output import emit
from experiments.cli.waiting import working
from sim.errors import InputError

Kind = Annotated[
    str,
    typer.Argument(
        metavar="KIND|KERNEL",
        help="A kind of problem (linear, attention ...), a kernel's name, or model: then the name of a known one or a "
        "folder with a config.json.",
        show_default=False,
    ),
]
Machines = Annotated[
    str, typer.Option("--machine", metavar="NAME,...", help="Chips that stand side by side: names, or JSON files.")
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the kernel too, for its registers; needs no GPU.")]


def explain(
    kind: Kind,
    words: Words = None,
    schedule: Schedule = "",
    machine: Machines = "h100",
    compiled: Compile = False,
    as_json: Json = False,
) -> None:
    """Explain a problem, how a kernel solves it, or a step of a whole model: what it costs on a chip, and what binds.

    lab explain linear m=1 n=4096 k=4096; gemm_pingpong m=2k n=4k k=4k; model llama-3-8b batch=1,8 context=1k..128k.

    m=1,2,4 lists values, context=1k..128k doubles from the first to the last, k is 1,024: a table of all of them.
    """
    from experiments.asked import kernel_named, questions
    from experiments.cli.explained import render
    from experiments.running.simulation import require_room
    from lab.explain import Chooser, explain
    from sim.machine import machine as machine_named

    kernel = kernel_named(kind)
    if kernel is None and schedule:
        raise InputError("a schedule is one kernel's: name the kernel in place of the kind of problem")
    if kind == "model" and compiled:
        raise InputError("--compile is for one kernel or one problem, not for a whole model")

    choose: Chooser | None = partial(_planned, kernel, schedule) if kernel else None
    if kind == "model":
        from lab.inference.model_step import step_plan  # loaded on first use: only a model needs it

        choose = cache(step_plan)  # contexts and batches share most of their layers
    chips = [machine_named(name) for name in machine.split(",")]
    asked = [(question, chip) for question in questions(kind, words or []) for chip in chips]
    for problem, chip in asked if kernel else ():
        require_room(problem, chip)
    with working(f"explaining {kind}"):
        documents = _with_times([explain(question, chip, choose).as_dict(compiled) for question, chip in asked])
    emit(documents if len(documents) > 1 else documents[0], as_json, lambda _: render(documents))


def _with_times(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The documents with the newest time of just that kernel, problem and schedule on such a card, by each clock."""
    import msgspec

    from experiments.lookup import newest_times
    from lab.record import archive

    problems = {repr(document["problem"]): document["problem"] for document in documents}
    past = archive(msgspec.json.encode(problems.popitem()[1]) if len(problems) == 1 else b"")
    named = ("kernel", "problem", "schedule", "machine")
    return [{**d, "measured": newest_times(past, {name: d[name] for name in named})} for d in documents]


def _planned(kernel: Any, schedule: str, problem: Any, chip: Any) -> Any:
    """The plan of a kernel's schedule, in words as --schedule takes them."""
    from lab.execute.plan import plan
    from lab.kernel import parse_schedule

    return plan(problem, chip, parse_schedule(kernel, schedule, problem, chip), kernel)
