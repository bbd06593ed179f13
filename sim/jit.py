"""Numba as the simulators use it: `njit` and `prange`, with a cache that knows code by its content.

Numba looks for an edit in the file that defines a compiled function, not in the files of what it calls, and keeps a
cache for each folder that a file lies in. Here an entry is named after the text of a file and of all files of the
simulated chip and of the kernels that it imports: an edit anywhere among them is seen, and all checkouts share what is
alike. A folder that cannot be written falls back to Numba's own.
"""

import hashlib
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import njit, prange
from numba.core.caching import CacheImpl, UserProvidedCacheLocator

from sim.folders import ROOT, cache_path

__all__ = ["njit", "prange"]

# Waiting threads sleep: by spinning they lose a scheduler's time slice at every barrier as soon as any other program is
# busy. GNU OpenMP, under Numba, reads this when the first parallel function runs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_IMPORTS = re.compile(r"^from ((?:sim|lab\.kernels)\b[\w.]*) import (?:\(([^)]*)\)|(.*))", re.MULTILINE)


@cache
def _own(path: Path) -> tuple[bytes, frozenset[Path]]:
    """(text, files of compiled code that it imports)."""
    text = path.read_text()
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
        return super(UserProvidedCacheLocator, cls).from_function(py_func, py_file) if ours else None


CacheImpl._locator_classes.insert(0, ContentLocator)
