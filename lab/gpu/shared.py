"""Memory of a GPU that other processes may open: allocated whole, and named by the handle of its base."""

from typing import Any

import cupy
import numpy as np

_ALREADY = 704  # cudaErrorPeerAccessAlreadyEnabled


def allocated(nbytes: int, device: int) -> Any:
    """Zeroed bytes on a GPU in an allocation of their own, which no pool of the process shares."""
    with cupy.cuda.Device(device):
        memory = cupy.cuda.Memory(nbytes)
        cupy.cuda.runtime.memset(memory.ptr, 0, nbytes)
        cupy.cuda.Device().synchronize()
        return cupy.ndarray((nbytes,), np.uint8, cupy.cuda.MemoryPointer(memory, 0))


class Apart:
    """A GPU as the current one of whichever thread is within, and a stream of its own that waits for no other."""

    def __init__(self, device: int) -> None:
        self._device = cupy.cuda.Device(device)
        with self._device:
            self._stream = cupy.cuda.Stream(non_blocking=True)

    def __enter__(self) -> None:
        self._device.__enter__()
        self._stream.__enter__()

    def __exit__(self, *error: object) -> None:
        self._stream.__exit__(*error)
        self._device.__exit__(*error)

    def synchronize(self) -> None:
        """Return when all is done that was enqueued there."""
        self._stream.synchronize()


def handle_of(array: Any, device: int) -> bytes:
    """What another process opens such bytes by."""
    with cupy.cuda.Device(device):
        found: bytes = cupy.cuda.runtime.ipcGetMemHandle(array.data.ptr)
        return found


def opened(handle: bytes, nbytes: int, device: int) -> Any:
    """The bytes that a handle of another process names, on whichever GPU they are, as a GPU of this one reaches them.

    They stay open as long as the process lives, and must not be used when their owner is gone.
    """
    with cupy.cuda.Device(device):
        pointer = cupy.cuda.runtime.ipcOpenMemHandle(handle)
        memory = cupy.cuda.UnownedMemory(pointer, nbytes, handle, device)
        return cupy.ndarray((nbytes,), np.uint8, cupy.cuda.MemoryPointer(memory, 0))


def reach(here: int, there: int) -> bool:
    """Let kernels of a GPU use another's memory; False where no link leads there."""
    runtime = cupy.cuda.runtime
    if here == there:
        return True
    if not runtime.deviceCanAccessPeer(here, there):
        return False
    with cupy.cuda.Device(here):
        try:
            runtime.deviceEnablePeerAccess(there)
        except runtime.CUDARuntimeError as error:
            if error.status != _ALREADY:
                raise
    return True
