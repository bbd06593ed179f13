"""Finds kernels by listing `lab/kernels/<family>/<stem>.{cu,py}`."""

from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import cast

from lab.errors import import_error, shown
from lab.kernel import Kernel, KernelModule, Solves
from sim.errors import InputError, KernelError

_FOLDER = Path(__file__).parent / "kernels"
_CONTRACT = tuple(name for name in (*KernelModule.__annotations__, *vars(KernelModule)) if not name.startswith("_"))


@cache
def _sources() -> dict[str, tuple[Path, ...]]:
    """The device code of each name: one file, or by mistake several."""
    found: dict[str, tuple[Path, ...]] = {}
    for source in sorted(_FOLDER.glob("*/*.cu")):
        found[source.stem] = (*found.get(source.stem, ()), source)
    return found


def names() -> tuple[str, ...]:
    """The names of all kernels, by family and then by name."""
    return tuple(_sources())


@cache
def get(name: str) -> Kernel:
    """The kernel of that name; raises InputError and lists the known ones where there is none of it.

    Raises KernelError, with file and line, where its files cannot be used.
    """
    if name not in _sources():
        raise InputError(f"unknown kernel {name!r}; known kernels: {', '.join(names())}")
    source, *others = _sources()[name]
    if others:
        raise KernelError(f"two kernels are called {name}: {' and '.join(map(shown, (source, *others)))}")
    description = source.with_suffix(".py")
    if not description.exists():
        raise KernelError(f"{shown(source)} has no description beside it: {description.name} is missing")
    family = source.parent.name
    try:
        module = import_module(f"lab.kernels.{family}.{name}")
    except Exception as error:
        raise import_error(error, description) from error
    if complaint := _complaint(module):
        raise KernelError(f"{shown(description)} {complaint}")
    return Kernel(name, family, source, cast(KernelModule, module))


def kernels() -> tuple[Kernel, ...]:
    """Every kernel but the `broken` ones, so that one author's mistake takes no other kernel away."""
    return tuple(get(name) for name in names() if name not in broken())


@cache
def broken() -> dict[str, KernelError]:
    """What is wrong with each kernel whose files cannot be used."""
    found = {}
    for name in names():
        try:
            get(name)
        except KernelError as error:
            found[name] = error
    return found


def _complaint(module: ModuleType) -> str:
    """What a description lacks of the contract, or nothing."""
    missing = [name for name in _CONTRACT if not hasattr(module, name)]
    if missing:
        return f"does not define {', '.join(missing)}"
    if not isinstance(module.SOLVES, Solves):
        return "needs SOLVES to be a Solves"
    if not is_dataclass(module.Schedule):
        return "needs Schedule to be a dataclass"
    return "" if (module.__doc__ or "").strip() else "has no docstring: its first line says what the kernel adds"
