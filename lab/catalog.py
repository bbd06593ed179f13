"""Finds kernels by listing lab/kernels/<family>/<stem>.{cu,py}."""

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import cast

from lab.kernel import Kernel, KernelModule
from sim.errors import InputError

_FOLDER = Path(__file__).parent / "kernels"


@cache
def _sources() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for source in sorted(_FOLDER.glob("*/*.cu")):
        if source.stem in found:
            raise RuntimeError(f"two kernels are called {source.stem}: {found[source.stem]} and {source}")
        if not source.with_suffix(".py").exists():
            raise RuntimeError(f"{source} has no description beside it: {source.with_suffix('.py').name} is missing")
        found[source.stem] = source
    return found


def names() -> tuple[str, ...]:
    """The names of all kernels, by family and then by name."""
    return tuple(_sources())


@cache
def get(name: str) -> Kernel:
    """The kernel of that name; raises InputError and lists the known ones otherwise."""
    source = _sources().get(name)
    if source is None:
        raise InputError(f"unknown kernel {name!r}; known kernels: {', '.join(names())}")
    family = source.parent.name
    module = import_module(f"lab.kernels.{family}.{name}")
    return Kernel(name, family, source, cast(KernelModule, module))


def kernels() -> tuple[Kernel, ...]:
    """Every kernel."""
    return tuple(get(name) for name in names())
