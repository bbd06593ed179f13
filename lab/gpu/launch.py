"""Launches on the GPU: compiled, loaded, parameters packed once, then run in microseconds on any stream."""

import ctypes
from collections.abc import Mapping
from ctypes import c_void_p
from functools import cache
from pathlib import Path

import cupy
import numpy as np
from numpy.typing import NDArray

from lab import catalog
from lab.compile import compile_launch
from lab.gpu import device, driver
from lab.gpu.parameters import DeviceArray, Parameters, pointers_of
from lab.verify import Execute
from sim.counts import Counts
from sim.errors import EnvironmentFailure
from sim.launch import Launch, Role
from sim.machine import Machine

_INVALID_CONTEXT = 201  # this thread has not used the GPU yet
_PORTABLE_CLUSTER = 8  # CTAs; more need an opt-in (CUDA C++ Programming Guide, "Thread block clusters")


class Prepared:
    """Launches that are ready to run in order: `bind` the arrays, then call it, also while a graph is captured.

    Not for two threads at once: binding patches the parameters in place.
    """

    def __init__(self, launches: tuple[Launch, ...], machine: Machine) -> None:
        for launch in launches:
            solves = catalog.get(launch.kernel).solves
            device.require_kernel(launch.kernel, solves.runs_on, solves.arch, machine)
        use_context()
        with driver.relaxed_capture():
            self._ready = [Ready(launch, compile_launch(launch, machine).path) for launch in launches]
        self._pointers: dict[str, int] = {}
        self._launch = driver.library().cuLaunchKernelEx
        self._launch.argtypes = (c_void_p, c_void_p, c_void_p, c_void_p)

    def bind(self, pointers: Mapping[str, int]) -> "Prepared":
        """Let the named arrays lie at these addresses from the next call on."""
        for name, pointer in pointers.items():
            if self._pointers.get(name) != pointer:
                for ready in self._ready:
                    ready.parameters.point(name, pointer)
                self._pointers[name] = pointer
        return self

    def __call__(self, stream: int | None = None) -> None:
        """Enqueue the launches on a stream (a CUstream address; CuPy's current one by default)."""
        if stream is None:
            stream = cupy.cuda.get_current_stream().ptr
        for ready in self._ready:
            ready.config.stream = stream
            status = self._launch(ready.config_address, ready.function, ready.parameters.address, None)
            if status == _INVALID_CONTEXT:
                use_context()
                status = self._launch(ready.config_address, ready.function, ready.parameters.address, None)
            if status:
                driver.check(status, f"cuLaunchKernelEx of {ready.entry}", driver.library())


def prepare(launches: tuple[Launch, ...], arrays: Mapping[str, DeviceArray], machine: Machine) -> Prepared:
    """Compile and load launches and bind arrays on the device to them.

    Raises InputError for an array that is not what its launch describes, NoDeviceError where this GPU cannot run them,
    EnvironmentFailure where they do not compile.
    """
    return Prepared(launches, machine).bind(pointers_of(arrays, launches))


def executor(machine: Machine) -> Execute:
    """The GPU as `lab.verify` takes a chip: NumPy arrays go to the device and come back, guard bands and all.

    It counts nothing. Raises EnvironmentFailure where a kernel fails.
    """

    def execute(launches: tuple[Launch, ...], arrays: dict[str, NDArray]) -> Counts:
        prepared = Prepared(launches, machine)
        written = {a.name for launch in launches for a in launch.arrays if a.role is not Role.IN}
        named = {a.name for launch in launches for a in launch.arrays}
        whole = {name: _whole(arrays[name]) if name in written else arrays[name] for name in named}
        there = {name: cupy.asarray(_bytes(array)) for name, array in whole.items()}
        offset = {name: _address(arrays[name]) - _address(array) for name, array in whole.items()}
        prepared.bind({name: there[name].data.ptr + offset[name] for name in named})
        prepared()
        driver.synchronize(cupy.cuda.get_current_stream().ptr)
        for name in written:
            _bytes(whole[name])[...] = there[name].get()
        return Counts()

    return execute


def device_workspaces(launches: tuple[Launch, ...]) -> dict[str, cupy.ndarray]:
    """Zeroed device arrays for every workspace of the launches, and for what one launch writes for the next."""
    given = {name for launch in launches for name in (*launch.problem.inputs, *launch.problem.outputs)}
    arrays = {a.name: a for launch in launches for a in launch.arrays if a.name not in given}
    if not arrays:
        return {}
    with driver.relaxed_capture(), cupy.cuda.Stream(non_blocking=True) as stream:
        zeroed = {name: cupy.zeros(array.shape, array.storage) for name, array in arrays.items()}
        driver.synchronize(stream.ptr)
    return zeroed


def use_context() -> None:
    """Make the GPU's primary context, which CuPy and PyTorch share, this thread's own."""
    driver.call("cuCtxSetCurrent", _context())


@cache
def _context() -> c_void_p:
    context = c_void_p()
    driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    return context


class Ready:
    """One launch: its function, its geometry as the driver's structure, its parameters."""

    def __init__(self, launch: Launch, cubin: Path) -> None:
        self.entry = launch.entry
        self.parameters = Parameters(launch)
        self.function = function(cubin, launch)
        self._attributes = (driver.LaunchAttribute * 2)(*launch_attributes(launch))
        self.config = driver.LaunchConfig(
            grid=launch.grid,
            block=launch.block,
            shared_bytes=launch.shared_bytes,
            attributes=self._attributes,
            attribute_count=len(launch_attributes(launch)),
        )
        self.config_address = ctypes.addressof(self.config)


def launch_attributes(launch: Launch) -> list[driver.LaunchAttribute]:
    """The cluster and the programmatic stream serialization that a launch asks for."""
    attributes = []
    if launch.cluster != (1, 1, 1):
        cluster = driver.LaunchAttribute(id=driver.CLUSTER_DIMENSION)
        cluster.value.cluster.x, cluster.value.cluster.y, cluster.value.cluster.z = launch.cluster
        attributes.append(cluster)
    if launch.dependent:
        dependent = driver.LaunchAttribute(id=driver.PROGRAMMATIC_STREAM_SERIALIZATION)
        dependent.value.flag = 1
        attributes.append(dependent)
    return attributes


def function(cubin: Path, launch: Launch) -> int:
    """The CUfunction of a launch's entry, allowed the shared memory and the cluster that the launch asks for."""
    handle = c_void_p()
    driver.call("cuModuleGetFunction", ctypes.byref(handle), load(cubin), launch.entry.encode())
    allowed = ctypes.c_int()  # launches of one function may differ in their shared memory: none takes from another's
    driver.call("cuFuncGetAttribute", ctypes.byref(allowed), driver.MAX_DYNAMIC_SHARED_BYTES, handle)
    if launch.shared_bytes > allowed.value:
        driver.call("cuFuncSetAttribute", handle, driver.MAX_DYNAMIC_SHARED_BYTES, launch.shared_bytes)
    if int(np.prod(launch.cluster)) > _PORTABLE_CLUSTER:
        driver.call("cuFuncSetAttribute", handle, driver.NON_PORTABLE_CLUSTER, 1)
    if handle.value is None:
        raise EnvironmentFailure(f"{cubin.name} has no entry {launch.entry}")
    return handle.value


@cache
def load(cubin: Path) -> c_void_p:
    """The CUmodule of a cubin, loaded once into the current context."""
    module = c_void_p()
    driver.call("cuModuleLoadData", ctypes.byref(module), cubin.read_bytes())
    return module


def _whole(array: NDArray) -> NDArray:
    """The array that owns the memory of a view: an output with its guard bands."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _bytes(array: NDArray) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _address(array: NDArray) -> int:
    return int(array.__array_interface__["data"][0])
