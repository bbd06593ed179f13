"""The GPU of this process: whether there is one, which machine it is, and how it is doing."""

import ctypes
import re
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from lab.gpu import driver
from sim.errors import NoDeviceError
from sim.machine import MACHINES, Machine, assumed_gpcs

# CUdevice_attribute
_CLOCK_KHZ, _SMS, _MEMORY_CLOCK_KHZ, _BUS_BITS, _L2, _THREADS_PER_SM = 13, 16, 36, 37, 38, 39
_MAJOR, _MINOR, _SHARED_PER_SM, _REGISTERS_PER_SM, _SHARED_PER_BLOCK = 75, 76, 81, 82, 97

# nvmlClocksEventReasons, NVML API reference
_THROTTLE = {
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
    0x100: "display clocks",
}
_NVML_SM, _NVML_MEMORY = 1, 2  # nvmlClockType_t


@dataclass(frozen=True)
class Card:
    """A GPU as its driver describes it; clocks in MHz, sizes in bytes, `hbm_bandwidth` in B/s."""

    name: str
    driver: str
    capability: tuple[int, int]
    sms: int
    hbm_bytes: int
    hbm_bandwidth: float
    l2_bytes: int
    sm_clock_max: float
    memory_clock_max: float
    shared_bytes_per_block: int
    shared_bytes_per_sm: int
    registers_per_sm: int
    threads_per_sm: int

    @property
    def arch(self) -> str:
        """The exact compile target: from compute capability 9.0 on with the architecture's own instructions."""
        major, minor = self.capability
        return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


@dataclass(frozen=True)
class Conditions:
    """How the GPU is doing now: clocks in MHz, watts, degrees Celsius; None where the driver does not say."""

    sm_clock: float | None = None
    memory_clock: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttle: tuple[str, ...] | None = None


def require_device() -> None:
    """Raise NoDeviceError, in one sentence, where no GPU can be used. Loads libcuda only, once."""
    driver.library()


@cache
def card() -> Card:
    """The first GPU this process can see; raises NoDeviceError where there is none."""
    lib = driver.library()
    name = ctypes.create_string_buffer(256)
    driver.check(lib.cuDeviceGetName(name, 256, 0), "cuDeviceGetName", lib)
    total = c_size_t()
    driver.check(lib.cuDeviceTotalMem_v2(byref(total), 0), "cuDeviceTotalMem", lib)

    def attribute(number: int) -> int:
        value = c_int()
        driver.check(lib.cuDeviceGetAttribute(byref(value), number, 0), "cuDeviceGetAttribute", lib)
        return value.value

    return Card(
        name=name.value.decode(),
        driver=_driver_version(lib),
        capability=(attribute(_MAJOR), attribute(_MINOR)),
        sms=attribute(_SMS),
        hbm_bytes=total.value,
        hbm_bandwidth=2e3 * attribute(_MEMORY_CLOCK_KHZ) * attribute(_BUS_BITS) / 8,  # two transfers a clock
        l2_bytes=attribute(_L2),
        sm_clock_max=attribute(_CLOCK_KHZ) / 1e3,
        memory_clock_max=attribute(_MEMORY_CLOCK_KHZ) / 1e3,
        shared_bytes_per_block=attribute(_SHARED_PER_BLOCK),
        shared_bytes_per_sm=attribute(_SHARED_PER_SM),
        registers_per_sm=attribute(_REGISTERS_PER_SM),
        threads_per_sm=attribute(_THREADS_PER_SM),
    )


def machine() -> Machine:
    """The machine that this process's GPU is; raises NoDeviceError where there is none."""
    return machine_of(card())


def machine_of(gpu: Card) -> Machine:
    """The known machine with that name, SM count and memory, else one made of what the driver says.

    Such a machine has no tensor-core peaks: kernels run, rooflines of tensor formats refuse.
    """
    words = re.split(r"[^a-z0-9]+", gpu.name.lower())
    for known in MACHINES.values():
        same_memory = 0.95 < gpu.hbm_bytes / known.hbm_bytes < 1.15  # data sheets round, drivers count in powers of two
        if known.name in words and known.sms == gpu.sms and same_memory:
            return known
    lanes = 64 if gpu.capability == (8, 0) else 128  # FP32 units an SM: CUDA C++ Programming Guide
    clock = gpu.sm_clock_max * 1e6
    return Machine(
        name=re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-"),
        title=gpu.name,
        arch=gpu.arch,
        sms=gpu.sms,
        gpcs=assumed_gpcs(gpu.sms),
        clock_hz=clock,
        peaks=MappingProxyType({"fp32": 2 * lanes * gpu.sms * clock}),
        hbm_bytes=gpu.hbm_bytes,
        hbm_bandwidth=gpu.hbm_bandwidth,
        l2_bytes=gpu.l2_bytes,
        l2_bandwidth=None,
        shared_bytes_per_block=gpu.shared_bytes_per_block,
        shared_bytes_per_sm=gpu.shared_bytes_per_sm,
        registers_per_sm=gpu.registers_per_sm,
        threads_per_sm=gpu.threads_per_sm,
        launch_us=MACHINES["h100"].launch_us,
        sources=("attributes that the driver of this GPU reports; launch time: the H100's is taken",),
    )


def require_kernel(name: str, runs_on: Callable[[str], bool], needs: str, target: Machine) -> None:
    """Raise NoDeviceError where this GPU is not `target` or cannot run a kernel that needs architecture `needs`."""
    gpu = card()
    if target.arch != gpu.arch:
        raise NoDeviceError(f"code for the {target.title} ({target.arch}) does not run on this {gpu.name} ({gpu.arch})")
    if not runs_on(gpu.arch):
        raise NoDeviceError(f"{name} needs a GPU of architecture {needs}; this {gpu.name} is {gpu.arch}")


def conditions() -> Conditions:
    """Clocks, throttle reasons, power and temperature now, from NVML; every field None where there is no NVML."""
    handle = _nvml()
    if handle is None:
        return Conditions()
    lib, gpu = handle

    def reading(function: str, kind: type[Any], *selectors: int) -> int | None:
        value = kind()
        known = getattr(lib, function, None)
        return int(value.value) if known and known(gpu, *selectors, byref(value)) == 0 else None

    reasons = reading("nvmlDeviceGetCurrentClocksEventReasons", c_ulonglong)
    if reasons is None:  # its name before driver 535
        reasons = reading("nvmlDeviceGetCurrentClocksThrottleReasons", c_ulonglong)
    milliwatts = reading("nvmlDeviceGetPowerUsage", c_uint)
    return Conditions(
        sm_clock=reading("nvmlDeviceGetClockInfo", c_uint, _NVML_SM),
        memory_clock=reading("nvmlDeviceGetClockInfo", c_uint, _NVML_MEMORY),
        power_w=None if milliwatts is None else milliwatts / 1e3,
        temperature_c=reading("nvmlDeviceGetTemperature", c_uint, 0),
        throttle=None if reasons is None else throttle_names(reasons),
    )


def throttle_names(reasons: int) -> tuple[str, ...]:
    """The names of NVML's clock event bits; an idle GPU's low clock is no throttling."""
    return tuple(name for bit, name in _THROTTLE.items() if reasons & bit)


@cache
def _nvml() -> tuple[Any, c_void_p] | None:
    lib = _nvml_library()
    if lib is None:
        return None
    bus = ctypes.create_string_buffer(32)
    gpu = c_void_p()
    driver.call("cuDeviceGetPCIBusId", bus, 32, 0)
    if lib.nvmlDeviceGetHandleByPciBusId_v2(c_char_p(bus.value), byref(gpu)):
        return None
    return lib, gpu


@cache
def _nvml_library() -> Any:
    try:
        lib = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return lib if lib.nvmlInit_v2() == 0 else None


def _driver_version(cuda: Any) -> str:
    nvml = _nvml_library()
    text = ctypes.create_string_buffer(80)
    if nvml and nvml.nvmlSystemGetDriverVersion(text, 80) == 0:
        return text.value.decode()
    number = c_int()
    driver.check(cuda.cuDriverGetVersion(byref(number)), "cuDriverGetVersion", cuda)
    return f"for CUDA {number.value // 1000}.{number.value % 1000 // 10}"
