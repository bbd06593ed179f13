"""The small kernels of probes.cu, compiled by CuPy on first use: they include nothing, so its cache key is right."""

from functools import cache
from pathlib import Path

import cupy

from lab.gpu.device import card

WORD = 16  # bytes that a thread moves at once


@cache
def _module() -> cupy.RawModule:
    source = Path(__file__).with_suffix(".cu").read_text()
    return cupy.RawModule(code=source, options=("-std=c++17",))


def kernel(name: str) -> cupy.RawKernel:
    """The kernel of that name in probes.cu."""
    return _module().get_function(name)


class Flush:
    """Call it to fill L2 with clean lines of other data.

    It reads: a flush that writes leaves dirty lines, which the timed kernel would have to evict.
    """

    def __init__(self) -> None:
        nbytes = max(256 * 2**20, 4 * card().l2_bytes)
        self._data = random_words(nbytes)
        self._out = cupy.zeros(1, cupy.uint32)
        self._words = cupy.uint64(nbytes // WORD)
        self._blocks = 8 * card().sms
        self._flush = kernel("flush")

    def __call__(self) -> None:
        """Enqueue the flush on the current stream; it takes long enough for the host to enqueue what is timed."""
        self._flush((self._blocks,), (512,), (self._data, self._words, self._out))


def random_words(nbytes: int) -> cupy.ndarray:
    """Random bits on the device; zeros would draw less power and can be faster than real data."""
    data = cupy.empty(nbytes // 4, cupy.uint32)
    piece = cupy.random.randint(0, 2**31 - 1, size=min(2**24, data.size), dtype=cupy.int32).view(cupy.uint32)
    for start in range(0, data.size, piece.size):
        part = data[start : start + piece.size]
        part[...] = piece[: part.size]
    return data
