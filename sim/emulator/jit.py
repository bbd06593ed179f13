"""Numba compilation for the emulator, cached on disk under a stamp of all its sources.

Numba's own cache looks only at the file of each function, so it would keep code that was compiled against an older
version of another module (a table's column, an inlined callee). Here all are recompiled when any source changes.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit, types

_FOLDER = Path(__file__).parent
_SOURCES = sorted([*_FOLDER.glob("*.py"), _FOLDER.parent / "counts.py", _FOLDER.parent / "cache.py"])
_COMPILED = [path for path in _SOURCES if "numba" in (text := path.read_text()) or "jit" in text or "isa" in path.stem]
_STAMP = hashlib.sha256(b"\0".join(path.read_bytes() for path in _COMPILED)).hexdigest()


def jit(function: Callable[..., Any] | None = None, /, *, entry: bool = False, **options: Any) -> Any:
    """`njit(cache=True)`; only an `entry` can be called from Python, which saves the others their wrappers."""
    if function is None:
        return lambda wrapped: jit(wrapped, entry=entry, **options)
    wrappers = {} if entry else {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    dispatcher = njit(cache=True, **wrappers, **options)(function)
    dispatcher._cache._cache_file._source_stamp = _STAMP
    compile_for = dispatcher.get_call_template

    def get_call_template(args: Any, kws: Any) -> Any:
        """Constants among the arguments are no types of their own: else each would compile another copy."""
        return compile_for([types.unliteral(a) for a in args], {k: types.unliteral(a) for k, a in kws.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher
