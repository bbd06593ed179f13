"""lab explain: a problem's bills, intensity, regime and floor, before anything runs."""

from functools import cache
from typing import Annotated

import typer

from experiments.cli.options import Json, Schedule, Words
from experiments.cli.output import emit
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
    from lab.execute.plan import Plan, plan
    from lab.explain import chosen_plan, explain
    from lab.inference.model_step import step_plan
    from lab.kernel import parse_schedule
    from lab.problems import Problem
    from sim.machine import Machine
    from sim.machine import machine as machine_named

    kernel = kernel_named(kind)
    if kernel is None and schedule:
        raise InputError("a schedule is one kernel's: name the kernel in place of the kind of problem")
    if kind == "model" and compiled:
        raise InputError("--compile is for one kernel or one problem, not for a whole model")

    def planned(problem: Problem, chip: Machine) -> Plan | None:
        if kernel is None:
            return step_plan(problem, chip) if kind == "model" else chosen_plan(problem, chip)
        return plan(problem, chip, parse_schedule(kernel, schedule, problem, chip), kernel)

    chips = [machine_named(name) for name in machine.split(",")]
    asked = [(question, chip) for question in questions(kind, words or []) for chip in chips]
    for problem, chip in asked if kernel else ():
        require_room(problem, chip)
    choose = cache(planned)  # contexts and batches share most of their layers
    documents = [explain(question, chip, choose).as_dict(compiled) for question, chip in asked]
    emit(documents if len(documents) > 1 else documents[0], as_json, lambda _: render(documents))
