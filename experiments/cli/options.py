"""Arguments and options that verbs share."""

from enum import StrEnum
from typing import Annotated

import typer

from sim.machine import MACHINES


class Where(StrEnum):
    """Which chip runs it."""

    SIM = "sim"
    GPU = "gpu"


Kernel = Annotated[str, typer.Argument(metavar="KERNEL", help="A name from lab list.", show_default=False)]
Words = Annotated[
    list[str] | None, typer.Argument(metavar="NAME=VALUE...", help="Problem dimensions, such as m=1 n=4096 k=4096.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")]
Machine = Annotated[
    str,
    typer.Option(help=f"The chip that theory and simulation describe: {', '.join(MACHINES)}, or a JSON file of one."),
]
Schedule = Annotated[
    str, typer.Option(metavar="NAME=VALUE,...", help="Schedule fields; the rest stay at the kernel's best guess.")
]
Deadline = Annotated[float, typer.Option(min=1, metavar="SECONDS", help="A run on the GPU is killed past it.")]
On = Annotated[Where, typer.Option("--on", help="Run on the simulated chip or on this machine's GPU.")]
Keep = Annotated[bool | None, typer.Option("--record/--no-record", help="Keep the records; by default those of a GPU.")]
