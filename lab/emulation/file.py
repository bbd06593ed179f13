"""A description file: a short Python file that says which kernel, how it is launched, and what is right."""

import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from traceback import walk_tb
from typing import Any

from lab.errors import at
from sim.errors import InputError, LabError

_OPTIONAL: dict[str, tuple[type, ...]] = {"INCLUDES": (list, tuple), "DEFINES": (dict,), "ALLOW": (list, tuple)}


@dataclass(frozen=True)
class Description:
    """What a description file says; SOURCE, INCLUDES are beside it.

    SOURCE, ENTRY and launch(rng) are needed; reference(arrays), INCLUDES, DEFINES and ALLOW (kinds of hazards) are not.
    """

    path: Path
    source: str
    entry: str
    launch: Callable[..., Any]
    reference: Callable[..., Any] | None = None
    includes: Sequence[Path] = ()
    defines: Mapping[str, Any] = field(default_factory=dict)
    allow: Sequence[str] = ()


def described(path: Path) -> Description:
    """Read a description file; raises InputError for what it lacks and KernelError, with its line, where it fails."""
    if path.suffix != ".py":
        raise InputError(f"{path} is no description; that is a Python file with SOURCE, ENTRY and launch(rng)")
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    with blamed(path):
        said = runpy.run_path(str(path))
    missing = [name for name in ("SOURCE", "ENTRY", "launch") if name not in said]
    if missing:
        raise InputError(f"{path} says no {' and no '.join(missing)}")
    for name, kind in _OPTIONAL.items():
        if name in said and not isinstance(said[name], kind):
            raise InputError(f"{path}: {name} is a {type(said[name]).__name__}")

    def guarded(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
        def call(*arguments: Any) -> Any:
            with blamed(path):
                assert function
                return function(*arguments)

        return call if function else None

    launch = guarded(said["launch"])
    assert launch
    return Description(
        path=path,
        source=str(said["SOURCE"]),
        entry=str(said["ENTRY"]),
        launch=launch,
        reference=guarded(said.get("reference")),
        includes=[path.parent / folder for folder in said.get("INCLUDES", ())],
        defines=said.get("DEFINES", {}),
        allow=said.get("ALLOW", ()),
    )


@contextmanager
def blamed(path: Path) -> Iterator[None]:
    """What a description's own code raises is its author's, with the line in it."""
    try:
        yield
    except LabError:
        raise
    except Exception as error:
        lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path)]
        where = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        raise at(path, where, error) from error
