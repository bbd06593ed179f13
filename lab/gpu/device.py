"""The GPU of this process: whether there is one, which machine it is, and how it is doing."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

from lab.cards import calibration
from lab.gpu import driver
from sim.errors import NoDeviceError
from sim.machine import MACHINES, Machine, assumed_gpcs, machine_filed, meet

# nvmlClocksEventReasons, NVML API reference; bindings name some by an old word
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


_OPT_IN_CLUSTER = 16  # CTAs (CUDA C++ Programming Guide, "Thread Block Clusters"; fewer where an SM is short of them)
_LAUNCH_OF_H100, _LAUNCH_CALIBRATED = "launch time: the H100's is taken", "launch time, L2 rate: lab calibrate"


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
    ctas_per_sm: int
    max_grid: tuple[int, int, int]
    max_block_threads: int
    reserved_shared_bytes: int
    clusters: bool

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
    """Raise NoDeviceError, in one sentence, where no GPU can be used. Loads libcuda and its binding only, once."""
    driver.api()


@cache
def card(device: int = 0) -> Card:
    """A GPU that this process can see, by its number; raises NoDeviceError where there is none."""
    attributes = driver.api().CUdevice_attribute
    count = driver.call("cuDeviceGetCount")
    if not 0 <= device < count:
        raise NoDeviceError(f"this process can see {count} GPUs, numbered from 0; there is no GPU {device}")

    def attribute(name: str) -> int:
        return int(driver.call("cuDeviceGetAttribute", getattr(attributes, f"CU_DEVICE_ATTRIBUTE_{name}"), device))

    return Card(
        name=_text(driver.call("cuDeviceGetName", 256, device)),
        driver=_driver_version(),
        capability=(attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")),
        sms=attribute("MULTIPROCESSOR_COUNT"),
        hbm_bytes=int(driver.call("cuDeviceTotalMem", device)),
        # two transfers a clock
        hbm_bandwidth=2e3 * attribute("MEMORY_CLOCK_RATE") * attribute("GLOBAL_MEMORY_BUS_WIDTH") / 8,
        l2_bytes=attribute("L2_CACHE_SIZE"),
        sm_clock_max=attribute("CLOCK_RATE") / 1e3,
        memory_clock_max=attribute("MEMORY_CLOCK_RATE") / 1e3,
        shared_bytes_per_block=attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        shared_bytes_per_sm=attribute("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"),
        registers_per_sm=attribute("MAX_REGISTERS_PER_MULTIPROCESSOR"),
        threads_per_sm=attribute("MAX_THREADS_PER_MULTIPROCESSOR"),
        ctas_per_sm=attribute("MAX_BLOCKS_PER_MULTIPROCESSOR"),
        max_grid=(attribute("MAX_GRID_DIM_X"), attribute("MAX_GRID_DIM_Y"), attribute("MAX_GRID_DIM_Z")),
        max_block_threads=attribute("MAX_THREADS_PER_BLOCK"),
        reserved_shared_bytes=attribute("RESERVED_SHARED_MEMORY_PER_BLOCK"),
        clusters=bool(attribute("CLUSTER_LAUNCH")),
    )


def machine(device: int = 0) -> Machine:
    """The machine that a GPU of this process is; raises NoDeviceError where there is none."""
    return meet(machine_of(card(device)))


def machine_of(gpu: Card) -> Machine:
    """The known machine with that name, SM count and memory, else the one that the user filed, else the driver's facts.

    The user's file is named after the card as the driver names it, such as machines/nvidia-h100-pcie.json. A machine of
    the driver's facts has no tensor-core peaks: kernels run, rooflines of tensor formats refuse. Its launch time and L2
    rate are those of a calibration where there is one.
    """
    words = re.split(r"[^a-z0-9]+", gpu.name.lower())
    for known in MACHINES.values():
        same_memory = 0.95 < gpu.hbm_bytes / known.hbm_bytes < 1.15  # data sheets round, drivers count in powers of two
        if known.name in words and known.sms == gpu.sms and same_memory:
            return known
    name = "-".join(word for word in words if word)
    filed = machine_filed(name)
    if filed:
        return filed
    lanes = 64 if gpu.capability == (8, 0) else 128  # FP32 units an SM: CUDA C++ Programming Guide
    clock = gpu.sm_clock_max * 1e6
    told = Machine(
        name=name,
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
        sources=("attributes that the driver of this GPU reports", "GPCs: assumed", _LAUNCH_OF_H100),
        ctas_per_sm=gpu.ctas_per_sm,
        max_grid=gpu.max_grid,
        max_block_threads=gpu.max_block_threads,
        max_cluster=_OPT_IN_CLUSTER if gpu.clusters else 1,
        reserved_shared_bytes=gpu.reserved_shared_bytes,
    )
    found = calibration(told)
    launch = found.launch("graph")
    return replace(
        told,
        l2_bandwidth=found.l2_rate,
        launch_us=launch or told.launch_us,
        sources=(*told.sources[:2], _LAUNCH_CALIBRATED if launch else _LAUNCH_OF_H100),
    )


def require_kernel(name: str, runs_on: Callable[[str], bool], needs: str, target: Machine, device: int = 0) -> None:
    """Raise NoDeviceError where the GPU is not `target` or cannot run a kernel that needs architecture `needs`."""
    gpu = card(device)
    if target.arch != gpu.arch:
        raise NoDeviceError(f"code for the {target.title} ({target.arch}) does not run on this {gpu.name} ({gpu.arch})")
    if not runs_on(gpu.arch):
        raise NoDeviceError(f"{name} needs a GPU of architecture {needs}; this {gpu.name} is {gpu.arch}")


def conditions() -> Conditions:
    """Clocks, throttle reasons, power and temperature now, from NVML; a field is None where it does not say."""
    found = _nvml()
    if found is None:
        return Conditions()
    nvml, gpu = found

    def reading(ask: Callable[..., int], *selectors: int) -> int | None:
        try:
            return int(ask(gpu, *selectors))
        except (nvml.NvmlError, RuntimeError):  # a card without that sensor, a driver without that function
            return None

    reasons = reading(nvml.device_get_current_clocks_event_reasons)
    milliwatts = reading(nvml.device_get_power_usage)
    return Conditions(
        sm_clock=reading(nvml.device_get_clock_info, nvml.ClockType.CLOCK_SM),
        memory_clock=reading(nvml.device_get_clock_info, nvml.ClockType.CLOCK_MEM),
        power_w=None if milliwatts is None else milliwatts / 1e3,
        temperature_c=reading(nvml.device_get_temperature_v, nvml.TemperatureSensors.TEMPERATURE_GPU),
        throttle=None if reasons is None else throttle_names(reasons),
    )


def throttle_names(reasons: int) -> tuple[str, ...]:
    """The names of NVML's clock event bits; an idle GPU's low clock is no throttling."""
    return tuple(name for bit, name in _THROTTLE.items() if reasons & bit)


@cache
def _nvml() -> tuple[Any, int] | None:
    """NVML and its handle of this GPU; None where NVML or its bindings are missing."""
    nvml = _nvml_library()
    if nvml is None:
        return None
    bus = _text(driver.call("cuDeviceGetPCIBusId", 32, 0))
    try:
        return nvml, nvml.device_get_handle_by_pci_bus_id_v2(bus)
    except nvml.NvmlError:
        return None


@cache
def _nvml_library() -> Any:
    """The bindings, initialised; a GPU library is loaded only where there is a GPU."""
    try:
        from cuda.bindings import nvml
    except ImportError:  # before cuda-bindings 13.2
        return None
    try:
        nvml.init_v2()
    except (RuntimeError, nvml.NvmlError):  # no libnvidia-ml, no driver behind it
        return None
    return nvml


def _driver_version() -> str:
    nvml = _nvml_library()
    if nvml is not None:
        return str(nvml.system_get_driver_version())
    number = driver.call("cuDriverGetVersion")
    return f"for CUDA {number // 1000}.{number % 1000 // 10}"


def _text(buffer: bytes) -> str:
    """A C string in a buffer that may hold anything behind it."""
    return buffer.split(b"\0", 1)[0].decode()
