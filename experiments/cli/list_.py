"""lab list: every kernel and every experiment."""

from typing import Any

from experiments.cli.options import Json
from experiments.cli.output import complain, emit, say, table
from sim.errors import KernelError


def list_(as_json: Json = False) -> int:
    """Every kernel: what it solves, in which formats, what it adds to which predecessor; and every experiment.

    Exit code 2 where the files of a kernel are broken: they are named, and the others are listed.
    """
    from lab import catalog

    document = [
        {
            "kernel": kernel.name,
            "solves": kernel.solves.problem.kind,
            "formats": list(kernel.solves.formats),
            "arch": kernel.solves.arch,
            "arch_of": dict(kernel.solves.arch_of),
            "adds": kernel.adds,
            "after": kernel.solves.after,
        }
        for kernel in catalog.kernels()
    ]
    emit(document, as_json, _render)
    for error in catalog.broken().values():
        complain(error)
    return KernelError.exit_code if catalog.broken() else 0


def _render(document: list[dict[str, Any]]) -> None:
    from experiments.catalog import questions

    rows = (
        [k["kernel"], k["solves"], ", ".join(k["formats"]), _needs(k), k["after"] or "-", k["adds"]] for k in document
    )
    table(["kernel", "solves", "formats", "arch", "after", "adds"], rows, numbers_from=6)
    table(["experiment", "question"], questions().items(), numbers_from=2)
    say("lab check KERNEL m=.. n=.. k=..   lab run EXPERIMENT   lab --help")


def _needs(kernel: dict[str, Any]) -> str:
    """The architecture, and what some formats need besides."""
    return "; ".join([kernel["arch"], *(f"{form}: {arch}" for form, arch in kernel["arch_of"].items())])
