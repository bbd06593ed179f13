"""Whose mistake an exception is: what a kernel's own files did wrong is said to their author, with file and line."""

from pathlib import Path
from traceback import walk_tb

from sim.errors import KernelError
from sim.folders import ROOT


def kernel_error(error: Exception) -> KernelError | None:
    """The exception for the author of the kernel whose code raised it, itself or below; None where no kernel's did.

    It names the innermost line of lab/kernels. What the surroundings do (a full disk) is no author's mistake.
    """
    lines = [
        (frame.f_code.co_filename, line)
        for frame, line in walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").startswith("lab.kernels.")
    ]
    return None if not lines or isinstance(error, OSError | MemoryError) else at(*lines[-1], error)


def import_error(error: Exception, path: Path) -> KernelError:
    """The exception that importing a kernel's file raised, with the line of that file or of a kernel file it needs."""
    if isinstance(error, SyntaxError):
        return at(error.filename or path, error.lineno, error)
    return kernel_error(error) or at(path, None, error)


def at(path: str | Path, line: int | None, error: Exception) -> KernelError:
    """An exception with the place it is from."""
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    place = shown(path) if line is None else f"{shown(path)}:{line}"
    return KernelError(f"{place}: {type(error).__name__}: {said}".rstrip(": "))


def shown(path: str | Path) -> str:
    """A file as the compiler names it too: from the folder that holds sim, lab, ptx and experiments."""
    return Path(path).relative_to(ROOT).as_posix() if Path(path).is_relative_to(ROOT) else str(path)
