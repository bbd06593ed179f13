"""Commands and what they print, run anew; the demo's headline, in README, is made of the records."""

import io
from collections.abc import Callable
from contextlib import redirect_stdout

from experiments import runner
from experiments.cli import demo, run_command
from lab.record import Archive
from sim.errors import LabError
from sim.machine import machine

MACHINE = "h200"  # what the demo simulates unless told otherwise
EXPLAIN = "explain linear m=1 n=4096 k=4096"
CHECK = "check gemm_pingpong m=128 n=256 k=256 --ptx"
MOST = 19  # lines of an output that are shown


def table(past: Archive) -> str:
    """Each command, about how long it takes on two cores, and its output."""
    records = past.newest_run(experiment=demo.EXPERIMENT, on="sim", machine=MACHINE)
    parts = [
        "`make demo` sets up `.venv` and shows the two machines on the simulated chip, within a minute and a half; "
        "then a language model speaks through the kernels, in two minutes more while Numba compiles and weights are "
        "fetched, later in half a minute:",
        _fenced("make demo", "slow"),
        _output(lambda: demo.headline(runner.conclude(demo.EXPERIMENT, records, past), past, machine(MACHINE)))
        if records
        else f"No records yet: `lab run {demo.EXPERIMENT} --machine {MACHINE} --record` makes them.",
        "`lab explain` weighs a problem before anything runs, in under a second (`make demo` puts `lab` into "
        "`.venv/bin`):",
        shown(EXPLAIN),
        "`lab check` runs a kernel's tile schedule and its compiled PTX on the CPU, in seconds once the emulator is "
        "compiled, which takes a minute or two:",
        shown(CHECK),
    ]
    return "\n\n".join(parts)


def shown(command: str) -> str:
    """A command of lab and what it prints, cut after MOST lines; raises LabError where it fails."""
    return f"{_fenced(f'lab {command}')}\n\n{_output(lambda: _run(command))}"


def _fenced(command: str, mark: str = "") -> str:
    return f"```sh{' ' * bool(mark)}{mark}\n{command}\n```"


def _output(printing: Callable[[], object]) -> str:
    """What a function prints, as a block of text, which "..." ends where there is more."""
    with redirect_stdout(io.StringIO()) as printed:
        printing()
    lines = [line.rstrip() for line in printed.getvalue().splitlines() if line.strip()]
    return "\n".join(["```text", *lines[:MOST], *(["..."] if len(lines) > MOST else []), "```"])


def _run(command: str) -> None:
    if run_command(command.split()):
        raise LabError(f"lab {command} failed, which a page shows")
