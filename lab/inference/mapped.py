"""A file's bytes as memory that is read when it is touched, and given back when it was used."""

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_AROUND = 2**16  # bytes that Linux maps around one that is touched (/sys/kernel/debug/fault_around_bytes)


class Mapped:
    """A file, read only, `data` its bytes; raises OSError, or ValueError where it is empty."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.data: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)

    def leave(self, start: int, stop: int) -> None:
        """Give back the memory of these bytes; they are read again when they are touched again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            first, last = start // _AROUND * _AROUND, -(-stop // _AROUND) * _AROUND
            self._map.madvise(mmap.MADV_DONTNEED, first, min(last, len(self.data)) - first)
