"""Memory of a chip that another process writes to: of a GPU by its handle, of the simulated chip by a file's name."""

import mmap
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from weakref import finalize

import numpy as np

from lab.inference.chip import Chip


class Name(NamedTuple):
    """What other processes know such memory by."""

    key: bytes
    nbytes: int


class Lent(NamedTuple):
    """Bytes, and their name."""

    array: Any
    name: Name


def lend(chip: Chip, nbytes: int) -> Lent:
    """Zeroed bytes on a chip that other processes may `borrow`; they are gone with their owner."""
    if chip.device is not None:
        from lab.gpu.shared import allocated, handle_of

        array = allocated(nbytes, chip.device)
        return Lent(array, Name(handle_of(array, chip.device), nbytes))
    file, path = tempfile.mkstemp(prefix="lab-chip-")
    os.ftruncate(file, nbytes)
    mapped = np.frombuffer(mmap.mmap(file, nbytes), np.uint8)
    os.close(file)
    finalize(mapped, Path(path).unlink, missing_ok=True)
    return Lent(mapped, Name(os.fsencode(path), nbytes))


def borrow(chip: Chip, name: Name) -> Any:
    """The bytes that another process lends, as this chip's kernels reach them."""
    if chip.device is not None:
        from lab.gpu.shared import opened

        return opened(*name, chip.device)
    with open(os.fsdecode(name.key), "r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), name.nbytes), np.uint8)
