"""Launches on the GPU: compiled, loaded, parameters packed once, then run in microseconds on any stream."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from lab import catalog
from lab.compile import compile_launch
from lab.gpu import driver
from lab.gpu.device import require_kernel
from lab.gpu.parameters import Parameters
from lab.verify import Execute, scratch
from sim.counts import Counts
from sim.errors import InputError
from sim.launch import Launch, Role
from sim.machine import Machine

MOST_CONSTANTS = 4096  # numbers that calls may have given in place of arrays
_PORTABLE_CLUSTER = 8  # CTAs; more need an opt-in (CUDA C++ Programming Guide, "Thread block clusters")


class Prepared:
    """Launches ready to run in order on a GPU: `bind` the arrays, then call it, also while a graph is captured.

    Raises NoDeviceError where the GPU cannot run them, KernelError where they do not compile. Not for two threads at
    once: binding patches the parameters in place.
    """

    def __init__(self, launches: tuple[Launch, ...], machine: Machine, device: int = 0) -> None:
        for launch in launches:
            solves = catalog.get(launch.kernel).solves
            runs_on = partial(solves.runs_on, problem=launch.problem)
            require_kernel(launch.kernel, runs_on, solves.needs(launch.problem), machine, device)
        self.device = device
        with driver.current(device), driver.relaxed_capture():
            self._compiled = [(launch, _compiled(launch, machine)) for launch in launches]
            self._ready = [Ready(*compiled, device) for compiled in self._compiled]
        self._pointers: dict[str, int] = {}

    def bind(self, pointers: Mapping[str, int]) -> "Prepared":
        """Let the named arrays lie at these addresses from the next call on."""
        for name, pointer in pointers.items():
            if self._pointers.get(name) != pointer:
                for ready in self._ready:
                    ready.parameters.point(name, pointer)
                self._pointers[name] = pointer
        return self

    def at(self, pointers: Mapping[str, int], stream: int) -> Callable[[], None]:
        """A call of the launches on what is bound and on these addresses, on one stream: for any thread, at any time.

        It has parameters of its own, so that the host has nothing to do but launch.
        """
        steps = [Ready(*compiled, self.device) for compiled in self._compiled]
        for step in steps:
            for name, pointer in {**self._pointers, **pointers}.items():
                step.parameters.point(name, pointer)
        calls = [step.on(stream) for step in steps]
        return calls[0] if len(calls) == 1 else partial(_each, calls)

    def __call__(self, stream: int | None = None) -> None:
        """Enqueue the launches on a stream (a CUstream address; CuPy's current one by default)."""
        if stream is None:
            stream = current_stream(self.device)
        for ready in self._ready:
            ready(stream)


@lru_cache(maxsize=1024)
def _compiled(launch: Launch, machine: Machine) -> Path:
    """The cubin of a launch, looked up once a process: a step binds the same one in every layer."""
    return compile_launch(launch, machine).path


def executor(machine: Machine, device: int = 0) -> Execute:
    """The GPU as `lab.verify` takes a chip: NumPy arrays go to the device and come back, guard bands and all.

    It counts nothing. Raises EnvironmentFailure where a kernel fails.
    """

    def execute(launches: tuple[Launch, ...], arrays: dict[str, NDArray]) -> Counts:
        prepared = Prepared(launches, machine, device)
        written = {a.name for launch in launches for a in launch.arrays if a.role is not Role.IN}
        named = {a.name for launch in launches for a in launch.arrays}
        whole = {name: _whole(arrays[name]) if name in written else arrays[name] for name in named}
        with cupy.cuda.Device(device):
            there = {name: cupy.asarray(_bytes(array)) for name, array in whole.items()}
            offset = {name: _address(arrays[name]) - _address(array) for name, array in whole.items()}
            prepared.bind({name: there[name].data.ptr + offset[name] for name in named})
            stream = current_stream(device)
            prepared(stream)
            driver.synchronize(stream)
            for name in written:
                _bytes(whole[name])[...] = there[name].get()
        return Counts()

    return execute


def current_stream(device: int = 0) -> int:
    """The CUstream address of CuPy's current stream on a GPU."""
    return int(cupy.cuda.get_current_stream(device).ptr)


def device_workspaces(launches: tuple[Launch, ...], device: int = 0) -> dict[str, cupy.ndarray]:
    """Zeroed arrays on a GPU for all that the launches take beside the problem's own arrays."""
    described = scratch(launches)
    if not described:
        return {}
    with aside(device):
        return {name: cupy.zeros(array.shape, array.storage) for name, array in described.items()}


def constant(value: float, device: int | None, count: int = 1) -> cupy.ndarray:
    """So many equal float32 on a GPU, by default the current one, kept for good: a graph may read them at any replay.

    Raises InputError where too many different ones were asked for.
    """
    key = np.float32(value).tobytes(), device, count
    if key not in _constants:
        if len(_constants) >= MOST_CONSTANTS:
            raise InputError(f"{MOST_CONSTANTS:,} different numbers were given; pass those that change as arrays")
        with aside(device):
            _constants[key] = cupy.full(count, value, np.float32)
    return _constants[key]


_constants: dict[tuple[bytes, int | None, int], cupy.ndarray] = {}


def resident(arrays: Mapping[str, NDArray], device: int) -> dict[str, cupy.ndarray]:
    """Copies of arrays on a GPU, there when this returns, also while a graph is captured."""
    if not arrays:
        return {}
    with aside(device):
        return {name: cupy.asarray(array) for name, array in arrays.items()}


def read(pointer: int, shape: tuple[int, ...], dtype: np.dtype, device: int, stream: int) -> NDArray:
    """A copy on the host of a dense array on a GPU, when all that the stream has to do is done."""
    found = np.empty(shape, dtype)
    if found.size:
        with driver.current(device):
            driver.call("cuMemcpyDtoHAsync", found.ctypes.data, pointer, found.nbytes, stream)
            driver.synchronize(stream)
    return found


def write(array: NDArray, pointer: int, device: int, stream: int) -> None:
    """Copy a dense array of the host to a GPU, in the order of the stream; it may change when this returns."""
    with driver.current(device):
        driver.call("cuMemcpyHtoDAsync", pointer, array.ctypes.data, array.nbytes, stream)


@contextmanager
def aside(device: int | None) -> Iterator[None]:
    """Allocate and fill arrays on a GPU beside whatever runs or is captured; all is done when this ends."""
    with cupy.cuda.Device(device), driver.relaxed_capture(), cupy.cuda.Stream(non_blocking=True) as stream:
        yield
        driver.synchronize(stream.ptr)


class Ready:
    """One launch: its function, its geometry as the driver's structure, its parameters.

    A call costs the host half a microsecond, as much as through ctypes.
    """

    def __init__(self, launch: Launch, cubin: Path, device: int = 0) -> None:
        self.parameters = Parameters(launch)
        self._entry = launch.entry
        self._device = device
        self._function = function(cubin, launch, device)
        self._config = launch_config(launch)
        self._stream = 0
        self._launch = driver.api().cuLaunchKernelEx

    def __call__(self, stream: int) -> None:
        """Enqueue it; raises EnvironmentFailure where the driver refuses."""
        if stream != self._stream:
            self._config.hStream = self._stream = stream
        (status,) = self._launch(self._config, self._function, self.parameters.address, 0)
        if status:
            self._retry(status)

    def on(self, stream: int) -> Callable[[], None]:
        """A call that enqueues it on this stream, for one that is never called itself: it looks nothing up."""
        self._config.hStream = stream
        launch, config, function, address = self._launch, self._config, self._function, self.parameters.address

        def enqueue() -> None:
            (status,) = launch(config, function, address, 0)
            if status:
                self._retry(status)

        return enqueue

    def _retry(self, status: Any) -> None:
        if status in driver.OTHER_CONTEXT:
            with driver.current(self._device):
                (status,) = self._launch(self._config, self._function, self.parameters.address, 0)
        if status:
            raise driver.failure(status, f"cuLaunchKernelEx of {self._entry}")


def _each(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


def launch_config(launch: Launch) -> Any:
    """A launch's geometry as CUlaunchConfig, with the cluster and the stream serialization that it asks for."""
    cuda = driver.api()
    config, attributes = cuda.CUlaunchConfig(), []
    config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
    config.blockDimX, config.blockDimY, config.blockDimZ = launch.block
    config.sharedMemBytes = launch.shared_bytes
    if launch.cluster != (1, 1, 1):
        cluster = cuda.CUlaunchAttribute()
        cluster.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        extent = cluster.value.clusterDim
        extent.x, extent.y, extent.z = launch.cluster
        attributes.append(cluster)
    if launch.dependent:
        dependent = cuda.CUlaunchAttribute()
        dependent.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        dependent.value.programmaticStreamSerializationAllowed = 1
        attributes.append(dependent)
    if launch.cooperative:
        cooperative = cuda.CUlaunchAttribute()
        cooperative.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        cooperative.value.cooperative = 1
        attributes.append(cooperative)
    config.attrs, config.numAttrs = attributes, len(attributes)
    return config


def function(cubin: Path, launch: Launch, device: int = 0) -> Any:
    """The CUfunction of a launch's entry, allowed the shared memory and the cluster that the launch asks for."""
    attributes = driver.api().CUfunction_attribute
    found = driver.call("cuModuleGetFunction", load(cubin, device), launch.entry.encode())
    # Launches of one function may differ in their shared memory: none takes from another's.
    shared = attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    if launch.shared_bytes > driver.call("cuFuncGetAttribute", shared, found):
        driver.call("cuFuncSetAttribute", found, shared, launch.shared_bytes)
    if prod(launch.cluster) > _PORTABLE_CLUSTER:
        driver.call("cuFuncSetAttribute", found, attributes.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)
    return found


@cache
def load(cubin: Path, device: int) -> Any:
    """The CUmodule of a cubin in a GPU's primary context, loaded once."""
    with driver.current(device):
        return driver.call("cuModuleLoadData", cubin.read_bytes())


def _whole(array: NDArray) -> NDArray:
    """The array that owns the memory of a view: an output with its guard bands."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _bytes(array: NDArray) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _address(array: NDArray) -> int:
    return int(array.__array_interface__["data"][0])
