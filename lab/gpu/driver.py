"""libcuda, called directly: no library to import before it is known that there is a device, and microseconds a call.

The structures are those of cuda.h (CUDA Driver API, "Data types used by CUDA driver").
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, Structure, Union, c_char_p, c_int, c_uint, c_void_p
from functools import cache
from typing import Any

from sim.errors import EnvironmentFailure, NoDeviceError

CLUSTER_DIMENSION = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
MAX_DYNAMIC_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
NON_PORTABLE_CLUSTER = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
CAPTURE_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED

# What a user can understand of the codes that a wrong or slow kernel causes.
_MEANING = {
    2: "the GPU is out of memory",
    700: "a kernel accessed an illegal address",
    702: "a kernel ran longer than the display driver allows",
    715: "a kernel executed an illegal instruction",
    716: "a kernel accessed a misaligned address",
    719: "a kernel failed",
}


class _Dimensions(Structure):
    _fields_ = (("x", c_uint), ("y", c_uint), ("z", c_uint))


class _AttributeValue(Union):
    _fields_ = (("cluster", _Dimensions), ("flag", c_int), ("bytes", ctypes.c_char * 64))


class LaunchAttribute(Structure):
    """CUlaunchAttribute."""

    _fields_ = (("id", c_int), ("pad", ctypes.c_char * 4), ("value", _AttributeValue))


class LaunchConfig(Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared_bytes", c_uint),
        ("stream", c_void_p),
        ("attributes", POINTER(LaunchAttribute)),
        ("attribute_count", c_uint),
    )


@cache
def library() -> ctypes.CDLL:
    """libcuda, initialised; raises NoDeviceError in one sentence where there is no driver or no device."""
    try:
        lib = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise NoDeviceError("there is no NVIDIA driver here (libcuda.so.1 was not found)") from None
    status = lib.cuInit(0)
    count = c_int(0)
    if status == 0:
        status = lib.cuDeviceGetCount(ctypes.byref(count))
    if status == 100 or (status == 0 and count.value == 0):
        raise NoDeviceError("there is an NVIDIA driver here but no GPU that this process can see")
    if status:
        raise NoDeviceError(f"the NVIDIA driver cannot start ({_name(lib, status)})")
    return lib


def call(function: str, *arguments: Any) -> None:
    """Call a driver function; raises EnvironmentFailure in one sentence where it fails."""
    lib = library()
    check(getattr(lib, function)(*arguments), function, lib)


def check(status: int, function: str, lib: Any) -> None:
    """Raise EnvironmentFailure for a status other than success."""
    if status:
        name = _name(lib, status)
        raise EnvironmentFailure(f"{_MEANING.get(status, 'the CUDA driver refused a call')} ({name} in {function})")


def synchronize(stream: int) -> None:
    """Wait for a stream; raises EnvironmentFailure for whatever its work did wrong."""
    call("cuStreamSynchronize", c_void_p(stream))


@contextmanager
def relaxed_capture() -> Iterator[None]:
    """Let this thread load modules and allocate although some stream is being captured."""
    mode = c_int(CAPTURE_RELAXED)
    call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    try:
        yield
    finally:
        call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))


def _name(lib: Any, status: int) -> str:
    name = c_char_p()
    lib.cuGetErrorName(status, ctypes.byref(name))
    return name.value.decode() if name.value else f"CUDA error {status}"
