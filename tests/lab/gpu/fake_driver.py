"""A CUDA driver and a CuPy whose device is the host's memory: packing and copying are tested without a GPU."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import driver as bindings

from sim.launch import Launch

SUCCESS = bindings.CUresult.CUDA_SUCCESS
MODULE, FUNCTION, EXECUTABLE = 55, 77, 99  # handles


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
        self.kernel(self)
        return (self.status,)

    def pointer(self, index: int) -> int:
        """The value of a pointer parameter of the last launch."""
        return ctypes.c_uint64.from_address(self.parameters[index]).value


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


class _DeviceArray:
    def __init__(self, host: Any) -> None:
        self._copy = np.array(host, copy=True)
        self.data = _Memory(self._copy.__array_interface__["data"][0])

    def get(self) -> Any:
        return self._copy.copy()


class _Stream:
    ptr = 9


class _Cuda:
    @staticmethod
    def get_current_stream(_device: int = -1) -> _Stream:
        return _Stream()


class FakeCupy:
    """As much of CuPy as the executor uses."""

    cuda = _Cuda
    asarray = _DeviceArray


def index_of(launch: Launch, name: str) -> int:
    """The position of a named argument among a launch's parameters."""
    return [a.name for a in launch.arguments].index(name)
