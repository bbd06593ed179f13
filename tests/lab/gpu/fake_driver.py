"""A libcuda and a CuPy whose device is the host's memory, so that packing and copying can be tested without a GPU."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from lab.gpu import driver
from sim.launch import Launch


class FakeLibrary:
    """Counts calls, hands out handles, and lets a Python function be the kernel."""

    def __init__(self, kernel: Callable[["FakeLibrary"], None] = lambda _: None) -> None:
        self.kernel = kernel
        self.configs: list[dict[str, Any]] = []
        self.parameters: list[int] = []
        self.attributes_set: list[tuple[int, int]] = []
        self.encoded: list[dict[str, Any]] = []
        self.status = 0
        self.cuLaunchKernelEx = _Function(self._launch)

    def _launch(self, config_address: int, function: int, parameters: int, extra: None) -> int:
        assert function == 77
        assert extra is None
        config = driver.LaunchConfig.from_address(config_address)
        attributes = [config.attributes[i] for i in range(config.attribute_count)]
        self.configs.append(
            {
                "grid": tuple(config.grid),
                "block": tuple(config.block),
                "shared_bytes": config.shared_bytes,
                "stream": config.stream or 0,
                "attributes": [a.id for a in attributes],
                "cluster": [
                    (a.value.cluster.x, a.value.cluster.y, a.value.cluster.z)
                    for a in attributes
                    if a.id == driver.CLUSTER_DIMENSION
                ],
            }
        )
        self.parameters = list((ctypes.c_uint64 * 16).from_address(parameters)) if parameters else []
        self.kernel(self)
        return self.status

    def pointer(self, index: int) -> int:
        """The value of a pointer parameter of the last launch."""
        return ctypes.c_uint64.from_address(self.parameters[index]).value

    def cuModuleLoadData(self, module: Any, _image: bytes) -> int:
        module._obj.value = 55
        return 0

    def cuModuleGetFunction(self, function: Any, module: Any, _name: bytes) -> int:
        assert module.value == 55
        function._obj.value = 77
        return 0

    def cuFuncSetAttribute(self, _function: Any, attribute: int, value: int) -> int:
        self.attributes_set.append((attribute, value))
        return 0

    def cuTensorMapEncodeTiled(self, at: Any, element: int, rank: Any, pointer: Any, *rest: Any) -> int:
        dimensions, strides, box, steps, *modes = rest
        self.encoded.append(
            {
                "at": at.value,
                "element": element,
                "rank": rank.value,
                "pointer": pointer.value,
                "dimensions": list(dimensions),
                "strides": list(strides)[: rank.value - 1],
                "box": list(box),
                "steps": list(steps),
                "modes": modes,
            }
        )
        return 0

    def cuGetErrorName(self, status: int, name: Any) -> int:
        name._obj.value = {700: b"CUDA_ERROR_ILLEGAL_ADDRESS"}.get(status, b"CUDA_ERROR_UNKNOWN")
        return 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("cu"):
            return lambda *_: 0
        raise AttributeError(name)


class _Function:
    argtypes: Any = None

    def __init__(self, function: Callable[..., int]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> int:
        return self._function(*arguments)


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
    def get_current_stream() -> _Stream:
        return _Stream()


class FakeCupy:
    """As much of CuPy as the executor uses."""

    cuda = _Cuda
    asarray = _DeviceArray


def index_of(launch: Launch, name: str) -> int:
    """The position of a named argument among a launch's parameters."""
    return [a.name for a in launch.arguments].index(name)
