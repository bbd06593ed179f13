"""A CUDA driver and a CuPy whose device is the host's memory: packing and copying are tested without a GPU."""

import ctypes
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import driver as bindings

from sim.launch import Launch

SUCCESS = bindings.CUresult.CUDA_SUCCESS
MODULE, FUNCTION, CAPTURED_STREAM = 55, 77, 99  # handles


class FakeDriver:
    """What `lab.gpu.driver.api` gives in tests: the bindings' own types, functions that note what they are asked.

    `kernel` is what a launch does, `status` what it returns, `context` what is current.
    """

    def __init__(self, kernel: Callable[["FakeDriver"], None] = lambda _: None, devices: int = 1) -> None:
        self.kernel = kernel
        self.devices = devices
        self.status: Any = SUCCESS
        self.context = 0  # current in this thread; that of GPU d is 100 + d
        self.configs: list[dict[str, Any]] = []
        self.parameters: list[int] = []
        self.attributes_set: list[tuple[Any, int]] = []
        self.encoded: list[dict[str, Any]] = []
        self.replaced: list[tuple[int, int]] = []
        self.called: list[str] = []
        self.homes: dict[int, int] = {}  # the GPU of an address, where it is not the first one
        self.arguments = 0  # of each launch that is captured
        self._values: dict[int, int] = {}  # parameters that a captured launch took with it
        self._capturing: list[dict[int, int]] | None = None
        self.graphs: list[list[dict[int, int]]] = []  # an executable graph is its place here

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("CU", "cuuint")):
            return getattr(bindings, name)
        if name.startswith("cu"):
            return lambda *_: (self.called.append(name), (SUCCESS,))[1]
        raise AttributeError(name)

    def cuDeviceGetCount(self) -> Any:
        return SUCCESS, self.devices

    def cuDeviceGetName(self, length: int, device: int) -> Any:
        return SUCCESS, f"NVIDIA H100 80GB HBM{device + 3}".encode().ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attribute: Any, _device: int) -> Any:
        return SUCCESS, int(attribute)

    def cuDeviceTotalMem(self, _device: int) -> Any:
        return SUCCESS, 80 * 2**30

    def cuDriverGetVersion(self) -> Any:
        return SUCCESS, 13010

    def cuCtxGetCurrent(self) -> Any:
        return SUCCESS, self.context

    def cuCtxSetCurrent(self, context: int) -> Any:
        self.context = context
        return (SUCCESS,)

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        return SUCCESS, 100 + device

    def cuThreadExchangeStreamCaptureMode(self, mode: Any) -> Any:
        return SUCCESS, mode

    def cuModuleLoadData(self, _image: bytes) -> Any:
        return SUCCESS, MODULE + self.context

    def cuModuleGetFunction(self, module: int, _name: bytes) -> Any:
        return SUCCESS, FUNCTION + module - MODULE

    def cuFuncGetAttribute(self, _attribute: Any, _function: int) -> Any:
        return SUCCESS, 0

    def cuFuncSetAttribute(self, _function: int, attribute: Any, value: int) -> Any:
        self.attributes_set.append((attribute, value))
        return (SUCCESS,)

    def cuTensorMapEncodeTiled(
        self, element: Any, rank: int, pointer: int, dimensions: Any, strides: Any, box: Any, steps: Any, *modes: Any
    ) -> Any:
        lists = {"dimensions": dimensions, "strides": strides, "box": box, "steps": steps}
        self.encoded.append(
            {
                "element": element,
                "rank": rank,
                "pointer": pointer,
                **{name: [int(value) for value in values] for name, values in lists.items()},
                "modes": list(modes),
            }
        )
        made = bindings.CUtensorMap()
        ctypes.memset(made.getPtr(), 7, 128)
        return SUCCESS, made

    def cuTensorMapReplaceAddress(self, tensor_map: Any, pointer: int) -> Any:
        self.replaced.append((tensor_map.getPtr(), pointer))
        return (SUCCESS,)

    def cuLaunchKernelEx(self, config: Any, function: int, parameters: int, _extra: int) -> Any:
        if function != FUNCTION + self.context:
            return (bindings.CUresult.CUDA_ERROR_INVALID_CONTEXT,)
        self.configs.append(
            {
                "grid": (config.gridDimX, config.gridDimY, config.gridDimZ),
                "block": (config.blockDimX, config.blockDimY, config.blockDimZ),
                "shared_bytes": config.sharedMemBytes,
                "stream": int(config.hStream),
                "context": self.context,
                **dict(_attribute(attribute) for attribute in config.attrs[: config.numAttrs]),
            }
        )
        self.parameters = list((ctypes.c_uint64 * 16).from_address(parameters)) if parameters else []
        if self._capturing is None:
            self._values = {}
            self.kernel(self)
        else:
            self._capturing.append({index: self.pointer(index) for index in range(self.arguments)})
        return (self.status,)

    def pointer(self, index: int) -> int:
        """The value of a pointer parameter of the last launch."""
        return self._values.get(index) or ctypes.c_uint64.from_address(self.parameters[index]).value

    def cuPointerGetAttribute(self, _attribute: Any, pointer: int) -> Any:
        return SUCCESS, self.homes.get(pointer, 0)

    def cuStreamCreate(self, _flags: int) -> Any:
        return SUCCESS, CAPTURED_STREAM

    def cuStreamBeginCapture(self, _stream: int, _mode: Any) -> Any:
        self._values, self._capturing = {}, []
        return (SUCCESS,)

    def cuStreamEndCapture(self, _stream: int) -> Any:
        captured, self._capturing = self._capturing, None
        return SUCCESS, captured

    def cuStreamIsCapturing(self, _stream: int) -> Any:
        status = bindings.CUstreamCaptureStatus
        active = self._capturing is not None
        return SUCCESS, status.CU_STREAM_CAPTURE_STATUS_ACTIVE if active else status.CU_STREAM_CAPTURE_STATUS_NONE

    def cuMemcpyDtoHAsync(self, host: int, pointer: int, nbytes: int, _stream: int) -> Any:
        ctypes.memmove(host, pointer, nbytes)
        return (SUCCESS,)

    def cuGraphInstantiate(self, captured: list[dict[int, int]], _flags: int) -> Any:
        self.graphs.append(captured)
        return SUCCESS, len(self.graphs) - 1

    def cuGraphExecUpdate(self, executable: int, captured: list[dict[int, int]]) -> Any:
        self.graphs[executable] = captured
        return SUCCESS, None

    def cuGraphLaunch(self, executable: int, stream: int) -> Any:
        self.called.append(f"cuGraphLaunch on {stream}")
        for values in self.graphs[executable]:
            self._values = values
            self.kernel(self)
        return (SUCCESS,)


def _attribute(attribute: Any) -> tuple[str, Any]:
    """Its name and value, copied: they lie in memory of the launch's own."""
    name = attribute.id.name.removeprefix("CU_LAUNCH_ATTRIBUTE_")
    if name == "CLUSTER_DIMENSION":
        extent = attribute.value.clusterDim
        return name, (extent.x, extent.y, extent.z)
    return name, attribute.value.programmaticStreamSerializationAllowed


class _Memory:
    def __init__(self, pointer: int) -> None:
        self.ptr = pointer


class DeviceArray:
    """An array of the fake device: a copy of one of the host, aligned as device memory is."""

    def __init__(self, host: Any) -> None:
        room = np.zeros(host.nbytes + 256, np.uint8)
        start = -room.__array_interface__["data"][0] % 256
        self.host = room[start : start + host.nbytes].view(host.dtype).reshape(host.shape)
        self.host[...] = host
        self.__cuda_array_interface__ = self.host.__array_interface__
        self.data = _Memory(self.host.__array_interface__["data"][0])

    def get(self) -> Any:
        return self.host.copy()


class _Stream:
    ptr = 9


class _Cuda:
    Device = staticmethod(lambda _: nullcontext())
    Stream = staticmethod(lambda **_: nullcontext(_Stream()))

    @staticmethod
    def get_current_stream(device: int = -1) -> Any:
        return SimpleNamespace(ptr=9 + max(device, 0))


class FakeCupy:
    """As much of CuPy as launches use."""

    cuda = _Cuda
    asarray = DeviceArray
    zeros = staticmethod(lambda shape, dtype: DeviceArray(np.zeros(shape, dtype)))
    full = staticmethod(lambda shape, value, dtype: DeviceArray(np.full(shape, value, dtype)))


def index_of(launch: Launch, name: str) -> int:
    """The position of a named argument among a launch's parameters."""
    return [a.name for a in launch.arguments].index(name)
