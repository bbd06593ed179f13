"""Beside a stream's kernels: pinned memory, copies in the stream's order, and places in it to wait for and to time."""

from collections.abc import Callable
from math import prod
from typing import Any
from weakref import finalize

import cupy
import numpy as np
from numpy.typing import NDArray

from lab.gpu import driver
from lab.gpu.launch import current_stream

_NOT_READY = 600  # CUDA_ERROR_NOT_READY


class Mark:
    """A place in what the current stream of a GPU has to do."""

    def __init__(self, device: int) -> None:
        self._device = device
        with driver.current(device):
            self._event = driver.call("cuEventCreate", 0)
        finalize(self, driver.api().cuEventDestroy, self._event)

    def set(self, stream: int | None = None) -> None:
        """Let it be here: behind all that was enqueued so far, on a stream or the current one."""
        where = current_stream(self._device) if stream is None else stream
        driver.call_on(self._device, "cuEventRecord", self._event, where)

    @property
    def passed(self) -> bool:
        """Whether the GPU has come to it; raises EnvironmentFailure for whatever its work did wrong."""
        (status,) = driver.api().cuEventQuery(self._event)
        if status and int(status) != _NOT_READY:
            raise driver.failure(status, "cuEventQuery")
        return not status

    def hold(self, stream: int) -> None:
        """Let a stream of any GPU go on only when it is passed."""
        driver.call_on(self._device, "cuStreamWaitEvent", stream, self._event, 0)

    def wait(self) -> None:
        """Return when the GPU has come to it; raises EnvironmentFailure for whatever its work did wrong."""
        driver.call("cuEventSynchronize", self._event)

    def us_after(self, earlier: "Mark") -> float:
        """Microseconds between two places that the GPU has passed."""
        return 1e3 * float(driver.call("cuEventElapsedTime", earlier._event, self._event))


def urgent_stream(device: int) -> int:
    """A stream whose CTAs are placed before those of others as SMs come free; it lives as long as the process."""
    with driver.current(device):
        _, highest = driver.api().cuCtxGetStreamPriorityRange()[1:]
        kind = int(driver.api().CUstream_flags.CU_STREAM_NON_BLOCKING)
        return int(driver.call("cuStreamCreateWithPriority", kind, highest))


def pinned(shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
    """Zeroed memory of the host that a GPU copies from and to while both go on."""
    count = prod(shape)
    memory = cupy.cuda.alloc_pinned_memory(max(count, 1) * dtype.itemsize)
    found = np.frombuffer(memory, dtype, count).reshape(shape)
    found[...] = 0
    return found


def copying(to: Any, source: Any, device: int) -> Callable[..., None]:
    """What enqueues a copy between dense arrays of one size, on the GPU or in pinned memory, whenever it is called.

    It is given a stream, or takes the current one.
    """
    target, origin, size = _address(to), _address(source), to.nbytes

    def copy(stream: int | None = None) -> None:
        where = current_stream(device) if stream is None else stream
        driver.call_on(device, "cuMemcpyAsync", target, origin, size, where)

    return copy


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else array.data.ptr)
