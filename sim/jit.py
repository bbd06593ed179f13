"""Numba as the simulators use it: `njit` and `prange`, with a cache that notices every edit.

Numba looks for an edit in the file that defines a compiled function, not in the files of what it calls. So its cache
lies in a folder named after the code of all primitives; a folder that cannot be written falls back to Numba's own.
"""

import hashlib
import os
from pathlib import Path

import numba
from numba import njit, prange

from sim.folders import cache_path

__all__ = ["njit", "prange"]

# Waiting threads sleep: by spinning they lose a scheduler's time slice at every barrier as soon as any other program is
# busy. GNU OpenMP, under Numba, reads this when the first parallel function runs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


if not numba.config.CACHE_DIR:  # NUMBA_CACHE_DIR
    numba.config.CACHE_DIR = str(cache_path() / "numba" / _digest())
