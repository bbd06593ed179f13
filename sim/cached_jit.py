"""Numba's `njit` with a cache that knows code by its content.

Numba looks for an edit in the file that defines a compiled function, not in the files of what it calls, and keeps a
cache for each folder that a file lies in. Here an entry is named after the text of a file and of all files of the
simulated chip and of the kernels that it imports: an edit anywhere among them is seen, and all checkouts share what is
alike. A cache that cannot be read or written is done without.

Parallel loops run on Numba's own workers, the threading layer that a process forked later can use as well: GNU OpenMP
kills such a process. These workers serve one thread at a time, which sim/turns.py sees to.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from fcntl import LOCK_EX, flock
from functools import cache
from pathlib import Path
from typing import Any

from sim.errors import EnvironmentFailure
from sim.folders import ROOT, cache_path

# Typing raises and drops an error for each signature that does not fit: colours for them take a thirtieth of it.
os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
try:
    import numba
    from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache, UserProvidedCacheLocator
    from numba.core.targetconfig import TargetConfig

    if numba.config.THREADING_LAYER == "default":  # nobody has chosen another
        numba.config.THREADING_LAYER = "workqueue"
    if numba.config.DISABLE_JIT:
        raise ValueError("NUMBA_DISABLE_JIT is set, and the simulated chip is compiled code")
    numba.get_num_threads()  # starts them
except (ValueError, RuntimeError) as error:
    raise EnvironmentFailure(f"Numba's settings (NUMBA_NUM_THREADS, NUMBA_THREADING_LAYER ...): {error}") from error


@cache
def _defaults(kind: Any) -> dict[str, Any]:
    return {name: option.default for name, option in kind.options.items()}


def _values(options: Any) -> dict[str, Any]:
    kind: Any = type(options)
    return {**_defaults(kind), **options._values}


# Numba compares the options of a compilation wherever a call is typed: a property for each of them takes a third of it.
TargetConfig.values = _values

_IMPORTS = re.compile(r"^ *from ((?:sim|lab\.kernels)\b[\w.]*) import (?:\(([^)]*)\)|(.*))", re.MULTILINE)


@cache
def _own(path: Path) -> tuple[bytes, frozenset[Path]]:
    """(text, files of compiled code that it imports)."""
    text = path.read_text(encoding="utf-8")
    found = set()
    for module, several, one in _IMPORTS.findall(text):
        package = ROOT / module.replace(".", "/")
        for name in re.findall(r"(\w+)(?: as \w+)?", re.sub("#.*", "", several or one)):
            inside, own = _file(package / name), _file(package)  # a file of the package, or what its own file defines
            found.add(inside if inside.exists() else own)
    return text.encode(), frozenset(found)


def _file(module: Path) -> Path:
    return module / "__init__.py" if module.is_dir() else module.with_suffix(".py")


@cache
def content(path: Path) -> str:
    """A digest of a file and of all that it imports of sim and lab.kernels."""
    seen, left = {path}, [path]
    while left:
        new = _own(left.pop())[1] - seen
        seen |= new
        left += new
    digest = hashlib.sha256()
    for file in sorted(seen, key=lambda file: os.path.relpath(file, ROOT)):
        digest.update(_own(file)[0])
    return digest.hexdigest()[:16]


class ContentLocator(UserProvidedCacheLocator):  # type: ignore[misc]  # Numba's stubs are skipped
    """The cache entries of a file of this project, by its content; Numba's own locators serve every other file."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        super().__init__(py_func, py_file)
        path = Path(py_file).resolve()
        self._cache_path = str(cache_path() / "numba" / f"{path.stem}-{content(path)}")

    def get_source_stamp(self) -> str:
        return Path(self._cache_path).name

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        ours = ROOT in Path(py_file).resolve().parents and not numba.config.CACHE_DIR  # NUMBA_CACHE_DIR
        return cls(py_func, py_file) if ours else None


class _Entries(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (ContentLocator, UserProvidedCacheLocator)


class _Cache(FunctionCache):  # type: ignore[misc]
    """Compiled code of one function on disk: what cannot be read is compiled, what cannot be written is not kept."""

    _impl_class = _Entries

    def load_overload(self, *arguments: Any) -> Any:
        try:
            return super().load_overload(*arguments)
        except Exception:  # pickle raises anything: a truncated file, a class of an argument that is no more
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, *arguments: Any) -> None:
        with suppress(OSError):
            super().save_overload(*arguments)


def njit(*function: Callable, cache: bool = False, **options: Any) -> Any:
    """numba.njit, with the cache described above."""

    def compiled(function: Callable) -> Any:
        made = numba.njit(**options)(function)
        if cache:
            made._cache = _cache_of(function)  # as Dispatcher.enable_caching does with Numba's own
        return made

    return compiled(*function) if function else compiled


def threads() -> int:
    """How many threads Numba is told to use."""
    return int(numba.get_num_threads())


@contextmanager
def alone(function: Callable) -> Iterator[None]:
    """Let one process at a time pass, for each function; without a cache they do not wait for one another."""
    with ExitStack() as stack:
        with suppress(OSError):
            path = ContentLocator(function, function.__code__.co_filename).get_cache_path()
            os.makedirs(path, exist_ok=True)
            lock = stack.enter_context(open(f"{path}/{function.__qualname__}.lock", "wb"))
            flock(lock, LOCK_EX)  # closing the file opens it
        yield


def _cache_of(function: Callable) -> Any:
    try:
        return _Cache(function)
    except RuntimeError:  # no locator has a place for it
        return NullCache()
