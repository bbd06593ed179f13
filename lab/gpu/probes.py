"""The small kernels of probes.cu, compiled by CuPy on first use: they include nothing, so its cache key is right."""

from collections.abc import Callable
from ctypes import c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import cupy

from lab.gpu import driver
from lab.gpu.device import card

WORD = 16  # bytes that a thread moves at once


@cache
def _module() -> cupy.RawModule:
    source = Path(__file__).with_suffix(".cu").read_text(encoding="utf-8")
    return cupy.RawModule(code=source, options=("-std=c++17",))


def kernel(name: str) -> cupy.RawKernel:
    """The kernel of that name in probes.cu."""
    return _module().get_function(name)


def dependent_call(name: str, blocks: int, threads: int, arguments: tuple[Any, ...] = ()) -> Callable[[], None]:
    """A launch of a probe that may start before the launch ahead of it ends (programmatic stream serialization).

    `arguments` are CuPy arrays and 64-bit integers.
    """
    function = kernel(name).kernel.ptr
    values = tuple(a.data.ptr if isinstance(a, cupy.ndarray) else int(a) for a in arguments)
    types = tuple(c_void_p if isinstance(a, cupy.ndarray) else c_uint64 for a in arguments)
    cuda = driver.api()
    attribute = cuda.CUlaunchAttribute()
    attribute.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    config = _config((blocks, 1, 1), threads, 0, attribute)

    def call() -> None:
        config.hStream = cupy.cuda.get_current_stream().ptr
        driver.call("cuLaunchKernelEx", config, function, (values, types), 0)

    return call


def clusters_at_once(ctas: int) -> int:
    """How many clusters of so many CTAs are resident at once, one CTA an SM, as the driver reckons."""
    cuda, empty = driver.api(), kernel("empty")
    shared = empty.max_dynamic_shared_size_bytes = card().shared_bytes_per_block - empty.shared_size_bytes
    allowed = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
    driver.call("cuFuncSetAttribute", empty.kernel.ptr, allowed, 1)
    attribute = cuda.CUlaunchAttribute()
    attribute.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    attribute.value.clusterDim.x, attribute.value.clusterDim.y, attribute.value.clusterDim.z = ctas, 1, 1
    return int(
        driver.call("cuOccupancyMaxActiveClusters", empty.kernel.ptr, _config((ctas, 1, 1), 32, shared, attribute))
    )


def _config(grid: tuple[int, int, int], threads: int, shared_bytes: int, attribute: Any) -> Any:
    config = driver.api().CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.sharedMemBytes = shared_bytes
    config.attrs, config.numAttrs = [attribute], 1
    return config


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
