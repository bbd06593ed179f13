"""The CUDA driver through cuda.bindings, loaded when a GPU is first asked for; a failed call is one sentence."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from sim.errors import EnvironmentFailure, NoDeviceError

# What a user can understand of the codes that a wrong or slow kernel causes.
_MEANING = {
    2: "the GPU is out of memory",
    700: "a kernel accessed an illegal address",
    702: "a kernel ran longer than the display driver allows",
    715: "a kernel executed an illegal instruction",
    716: "a kernel accessed a misaligned address",
    719: "a kernel failed",
}
_NO_DEVICE = 100
OTHER_CONTEXT = (201, 400)  # invalid context, invalid handle: this thread uses no GPU, or another one


@cache
def api() -> Any:
    """`cuda.bindings.driver`, initialised; raises NoDeviceError in one sentence where there is no driver or no device.

    libcuda is looked for before anything of cuda-python is touched: without it some of that raises pages, some hangs.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise NoDeviceError("there is no NVIDIA driver here (libcuda.so.1 was not found)") from None
    from cuda.bindings import driver  # loaded on first use: listing and explaining kernels load no GPU library

    (status,), count = driver.cuInit(0), 0
    if not status:
        status, count = driver.cuDeviceGetCount()
    if status == _NO_DEVICE or (not status and not count):
        raise NoDeviceError("there is an NVIDIA driver here but no GPU that this process can see")
    if status:
        raise NoDeviceError(f"the NVIDIA driver cannot start ({_name(status)})")
    return driver


def call(function: str, *arguments: Any) -> Any:
    """What a driver function gives, if anything; raises EnvironmentFailure in one sentence where it fails."""
    status, *given = getattr(api(), function)(*arguments)
    if status:
        raise failure(status, function)
    return given[0] if given else None


def call_on(device: int, function: str, *arguments: Any) -> Any:
    """As `call`, in a GPU's context, which is looked for only where this thread has none or another's."""
    entry = getattr(api(), function)
    status, *given = entry(*arguments)
    if status in OTHER_CONTEXT:
        with current(device):
            status, *given = entry(*arguments)
    if status:
        raise failure(status, function)
    return given[0] if given else None


def failure(status: Any, function: str) -> EnvironmentFailure:
    """The error that a status other than success is."""
    meaning = _MEANING.get(int(status), "the CUDA driver refused a call")
    return EnvironmentFailure(f"{meaning} ({_name(status)} in {function})")


def synchronize(stream: int) -> None:
    """Wait for a stream; raises EnvironmentFailure for whatever its work did wrong."""
    call("cuStreamSynchronize", stream)


def is_capturing(stream: int) -> bool:
    """Whether a graph is being captured from a stream."""
    return int(call("cuStreamIsCapturing", stream)) != int(api().CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)


@contextmanager
def current(device: int) -> Iterator[None]:
    """Make a GPU's primary context, which CuPy and PyTorch share, this thread's own for a while.

    A thread that has no context keeps this one.
    """
    before = call("cuCtxGetCurrent")
    call("cuCtxSetCurrent", _primary_context(device))
    try:
        yield
    finally:
        if int(before):
            call("cuCtxSetCurrent", before)


@contextmanager
def relaxed_capture() -> Iterator[None]:
    """Let this thread load modules and allocate although some stream is being captured."""
    mode = call("cuThreadExchangeStreamCaptureMode", api().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
    try:
        yield
    finally:
        call("cuThreadExchangeStreamCaptureMode", mode)


@cache
def _primary_context(device: int) -> Any:
    return call("cuDevicePrimaryCtxRetain", device)


def _name(status: Any) -> str:
    return str(getattr(status, "name", f"CUDA error {status}"))
