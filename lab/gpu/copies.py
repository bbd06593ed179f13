"""Many copies of one size between arrays that GPUs reach, without a kernel: one by one, and as one batch."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.gpu import driver

_IN_STREAM_ORDER = 1  # CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
_BATCH = "cuMemcpyBatchAsync_v2"  # as of CUDA 13: without the place where a copy failed


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Attributes(ctypes.Structure):
    """CUmemcpyAttributes, without hints where the memory is."""

    _fields_ = (("order", ctypes.c_int), ("source", _Location), ("target", _Location), ("flags", ctypes.c_uint))


class Copies:
    """Rows of a dense array to rows of another one, each a copy."""

    def __init__(self, target: Any, to: NDArray, source: Any, rows: NDArray, device: int) -> None:
        self.nbytes = source.nbytes // len(source)
        self._targets, self._sources = (
            np.uint64(array.data.ptr) + some.astype(np.uint64) * np.uint64(self.nbytes)
            for array, some in ((target, to), (source, rows))
        )
        self._pairs = list(zip(self._targets.tolist(), self._sources.tolist(), strict=True))
        self._sizes = np.full(len(rows), self.nbytes, np.uint64)
        self._device = device

    def one_by_one(self, stream: int) -> None:
        """Enqueue each by a call of its own."""
        for target, source in self._pairs:
            driver.call_on(self._device, "cuMemcpyAsync", target, source, self.nbytes, stream)

    def batch(self, stream: int) -> None:
        """Enqueue all by one call; raises EnvironmentFailure where the driver has none, or refuses."""
        cuda, attributes, first = driver.api(), _Attributes(_IN_STREAM_ORDER), ctypes.c_size_t(0)
        try:
            enqueue = getattr(ctypes.CDLL("libcuda.so.1"), _BATCH)
        except AttributeError:
            raise driver.failure(cuda.CUresult.CUDA_ERROR_NOT_SUPPORTED, _BATCH) from None
        arrays = [ctypes.c_void_p(a.ctypes.data) for a in (self._targets, self._sources, self._sizes)]
        count, one = ctypes.c_size_t(len(self._sizes)), ctypes.c_size_t(1)
        with driver.current(self._device):
            status = enqueue(
                *arrays, count, ctypes.byref(attributes), ctypes.byref(first), one, ctypes.c_void_p(stream)
            )
        if status:
            raise driver.failure(cuda.CUresult(status), _BATCH)
