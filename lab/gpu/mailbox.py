"""What a GPU sends the host while both go on: memory for a copy, and the moment when it is there."""

from typing import Any
from weakref import finalize

import cupy
import numpy as np
from numpy.typing import NDArray

from lab.gpu import driver
from lab.gpu.launch import current_stream


class Mailbox:
    """Pinned memory for copies of one dense array on a GPU, one at a time."""

    def __init__(self, array: cupy.ndarray, device: int) -> None:
        self._array, self._device = array, device
        with driver.current(device):
            self._memory = cupy.cuda.alloc_pinned_memory(array.nbytes)
            self._event = driver.call("cuEventCreate", int(driver.api().CUevent_flags.CU_EVENT_DISABLE_TIMING))
        self._copy = np.frombuffer(self._memory, array.dtype, array.size).reshape(array.shape)
        finalize(self, _release, driver.api(), self._event)

    def send(self) -> None:
        """Enqueue a copy on CuPy's current stream; the one before must have been taken."""
        stream = current_stream(self._device)
        with driver.current(self._device):
            driver.call("cuMemcpyDtoHAsync", self._copy.ctypes.data, self._array.data.ptr, self._array.nbytes, stream)
            driver.call("cuEventRecord", self._event, stream)

    def take(self) -> NDArray:
        """The copy, when it is there; what is enqueued behind it may still run. It is good until the next is sent."""
        with driver.current(self._device):
            driver.call("cuEventSynchronize", self._event)
        return self._copy


def _release(cuda: Any, event: Any) -> None:
    cuda.cuEventDestroy(event)
