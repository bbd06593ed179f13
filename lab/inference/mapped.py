"""A file's bytes: as memory that is read when it is touched and given back when it was used, or read to a place."""

import mmap
import os
from pathlib import Path
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

_AROUND = 2**16  # bytes that Linux maps around one that is touched (/sys/kernel/debug/fault_around_bytes)


class Mapped:
    """A file, read only, `data` its bytes; raises OSError, or ValueError where it is empty."""

    def __init__(self, path: Path) -> None:
        file = os.open(path, os.O_RDONLY)
        finalize(self, os.close, file)
        self._file, self._map = file, mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        self.data: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)

    def read(self, start: int, to: NDArray) -> None:
        """Fill dense memory with the bytes from `start` on, none of which is mapped: half the time of touching them.

        Raises OSError where the file ends before.
        """
        left = to.reshape(-1).view(np.uint8).data
        while len(left):
            count = os.preadv(self._file, [left], start)
            if not count:
                raise OSError("the file has become shorter")
            left, start = left[count:], start + count

    def leave(self, start: int, stop: int) -> None:
        """Give back the memory of these bytes; they are read again when they are touched again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            first, last = start // _AROUND * _AROUND, -(-stop // _AROUND) * _AROUND
            self._map.madvise(mmap.MADV_DONTNEED, first, min(last, len(self.data)) - first)
