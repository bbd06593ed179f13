"""lab list: every kernel and every experiment."""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from experiments.cli.options import Json
from experiments.cli.output import complain, emit, say, table
from experiments.cli.waiting import working
from sim.errors import InputError, KernelError


class What(StrEnum):
    """Which of the two is listed."""

    KERNELS = "kernels"
    EXPERIMENTS = "experiments"


class Order(StrEnum):
    """What kernels are sorted by; `after` puts each behind those that it improves on."""

    FAMILY = "family"
    NAME = "name"
    ARCH = "arch"
    AFTER = "after"


Listed = Annotated[
    What | None,
    typer.Argument(metavar="[kernels|experiments]", help="One of the two; JSON is of kernels by default."),
]
Solves = Annotated[str, typer.Option("--solves", metavar="KIND", help="Only kernels of this kind of problem.")]
Format = Annotated[str, typer.Option("--format", metavar="FORMAT", help="Only kernels that take this format.")]
RunsOn = Annotated[str, typer.Option("--machine", metavar="MACHINE", help="Only kernels that run on this machine.")]
Sort = Annotated[Order, typer.Option("--sort", help="The order of kernels; after: behind those they improve on.")]


def list_(
    what: Listed = None,
    solves: Solves = "",
    form: Format = "",
    machine: RunsOn = "",
    sort: Sort = Order.FAMILY,
    as_json: Json = False,
) -> int:
    """Every kernel: what it solves, in which formats, what it adds to which predecessor; and every experiment.

    Exit code 2 where the files of a kernel are broken: they are named, and the others are listed.
    """
    filtered = bool(solves or form or machine)
    if filtered and what is What.EXPERIMENTS:
        raise InputError("--solves, --format and --machine are of kernels; experiments have none of them")
    with working("reading the files of all kernels"):
        from lab import catalog

        kernels = [] if what is What.EXPERIMENTS else _kernels(_wanted(solves, form, machine), sort)
        experiments = [] if filtered or what is What.KERNELS or (as_json and what is None) else _experiments()
    emit(experiments if what is What.EXPERIMENTS else kernels, as_json, lambda _: _render(kernels, experiments))
    broken = {} if what is What.EXPERIMENTS else catalog.broken()
    for error in broken.values():
        complain(error)
    return KernelError.exit_code if broken else 0


def _wanted(solves: str, form: str, machine: str) -> Callable[[Any], bool]:
    """Whether a kernel is asked for; raises InputError where none could be."""
    from lab.kernel import provides
    from lab.problems import QUESTIONS
    from sim.formats import format_named
    from sim.machine import machine as machine_named

    if solves and solves not in QUESTIONS:
        raise InputError(f"unknown kind {solves!r}; kinds: {', '.join(QUESTIONS)}")
    if form:
        format_named(form)
    chip = machine_named(machine) if machine else None

    def wanted(kernel: Any) -> bool:
        takes = kernel.solves
        runs = chip is None or provides(chip.arch, takes.arch_of.get(form, takes.arch))
        return runs and solves in ("", takes.problem.kind) and form in ("", *takes.formats)

    return wanted


def _kernels(wanted: Callable[[Any], bool], sort: Order) -> list[dict[str, Any]]:
    from lab import catalog
    from lab.choice import ancestors

    orders: dict[Order, Callable[[Any], Any]] = {
        Order.FAMILY: lambda kernel: (kernel.family, kernel.name),
        Order.NAME: lambda kernel: kernel.name,
        Order.ARCH: lambda kernel: (kernel.solves.arch, kernel.name),
        Order.AFTER: lambda kernel: (kernel.family, len(ancestors(kernel)), kernel.name),
    }
    return [
        {
            "kernel": kernel.name,
            "solves": kernel.solves.problem.kind,
            "formats": list(kernel.solves.formats),
            "arch": kernel.solves.arch,
            "arch_of": dict(kernel.solves.arch_of),
            "adds": kernel.adds,
            "after": kernel.solves.after,
        }
        for kernel in sorted(filter(wanted, catalog.kernels()), key=orders[sort])
    ]


def _experiments() -> list[dict[str, Any]]:
    from experiments.catalog import names
    from experiments.runner import described

    return [described(name) for name in names()]


def _render(kernels: list[dict[str, Any]], experiments: list[dict[str, Any]]) -> None:
    from experiments.words import spell

    if kernels:
        headings = ["kernel", "solves", "formats", "arch", "after", "adds"]
        rows = (
            [k["kernel"], k["solves"], ", ".join(k["formats"]), _needs(k), k["after"] or "-", k["adds"]]
            for k in kernels
        )
        table(headings, rows, numbers_from=len(headings))
    if kernels and experiments:
        say()
    if experiments:
        headings = ["experiment", "question", "options"]
        rows = ([e["experiment"], e["question"], spell(e["options"]) or "-"] for e in experiments)
        table(headings, rows, numbers_from=len(headings))
    if not (kernels or experiments):
        say("no kernel is all of that")
    say("lab check KERNEL m=.. n=.. k=..   lab run EXPERIMENT --help   lab --help")


def _needs(kernel: dict[str, Any]) -> str:
    """The architecture, and what some formats need besides."""
    return "; ".join([kernel["arch"], *(f"{form}: {arch}" for form, arch in kernel["arch_of"].items())])
