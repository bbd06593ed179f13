"""Whose mistake an exception is: the author's of a kernel, with file and line, or of what the lab runs in."""

from pathlib import Path
from traceback import walk_tb

from sim.errors import EnvironmentFailure, KernelError
from sim.folders import ROOT, unicode


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


def surroundings_error(error: Exception) -> EnvironmentFailure | None:
    """The exception for what the system refused: room, a folder, memory; None for any other."""
    if isinstance(error, MemoryError):
        return EnvironmentFailure(f"there is not enough memory: {error}".removesuffix(": "))
    if isinstance(error, OSError):
        where = f": {unicode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
        return EnvironmentFailure(f"the system says: {error.strerror or error}{where}")
    return None


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
