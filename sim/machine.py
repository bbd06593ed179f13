"""What a chip is: sizes, peaks and bandwidths as data, each with its source."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sim.errors import InputError


@dataclass(frozen=True)
class Machine:
    """One GPU. Rates are per second and dense; sizes are in bytes; `peaks` maps an operand format to FLOP/s.

    `peaks["fp32"]` is the CUDA cores' rate; the other formats are the tensor cores' with float32 accumulation.
    """

    name: str
    title: str
    arch: str  # compile target; a trailing "a" means architecture-specific instructions
    sms: int
    clock_hz: float  # boost clock at which the peaks are quoted
    peaks: Mapping[str, float]  # FLOP/s by operand format
    hbm_bytes: int
    hbm_bandwidth: float  # B/s, data sheet
    l2_bytes: int
    l2_bandwidth: float | None  # B/s from L2 to the SMs; None where no figure was found
    shared_bytes_per_block: int  # the most one block can ask for
    shared_bytes_per_sm: int
    registers_per_sm: int  # 32-bit
    threads_per_sm: int
    launch_us: float  # one empty kernel inside a CUDA graph
    sources: tuple[str, ...]

    def peak(self, format_name: str) -> float:
        """FLOP/s for operands of one format; raises InputError where this chip has no such unit."""
        if format_name not in self.peaks:
            raise InputError(f"{self.title} has no {format_name} unit; it has {', '.join(self.peaks)}")
        return self.peaks[format_name]

    def ridge(self, format_name: str) -> float:
        """FLOP per byte at which both bills take equally long (Williams et al., "Roofline", CACM 2009)."""
        return self.peak(format_name) / self.hbm_bandwidth


_TERA = 1e12
_LAUNCH_MEASURED = "launch time: an empty kernel inside a CUDA graph on an H100 (lab run ceilings measures it)"
_LAUNCH_ASSUMED = "launch time: not measured on this chip, the H100's is taken"
_HOPPER_L2 = "L2 bandwidth: RRZE gpu-benches, gpu-l2-cache on an H200 (9.7 TB/s while the data fits)"
_HOPPER_TUNING = "shared memory, registers: CUDA C++ Programming Guide, compute capability 9.0"

A100 = Machine(
    name="a100",
    title="A100 SXM 40 GB",
    arch="sm_80",
    sms=108,
    clock_hz=1.41e9,
    peaks=MappingProxyType({"fp32": 19.5 * _TERA, "bf16": 312 * _TERA, "fp16": 312 * _TERA}),
    hbm_bytes=40 * 10**9,
    hbm_bandwidth=1.555 * _TERA,
    l2_bytes=40 * 2**20,
    l2_bandwidth=108 * 64 * 1.41e9,
    shared_bytes_per_block=163 * 1024,
    shared_bytes_per_sm=164 * 1024,
    registers_per_sm=65536,
    threads_per_sm=2048,
    launch_us=1.2,
    sources=(
        "peaks, memory, L2: NVIDIA A100 Tensor Core GPU data sheet and whitepaper (40 GB SXM4)",
        "L2 bandwidth: 64 B per clock and SM, A100 whitepaper",
        "shared memory, registers: CUDA C++ Programming Guide, compute capability 8.0",
        _LAUNCH_ASSUMED,
    ),
)

H100 = Machine(
    name="h100",
    title="H100 SXM 80 GB",
    arch="sm_90a",
    sms=132,
    clock_hz=1.83e9,
    peaks=MappingProxyType({"fp32": 66.9 * _TERA, "bf16": 989.4 * _TERA, "fp16": 989.4 * _TERA, "fp8": 1978.9 * _TERA}),
    hbm_bytes=80 * 10**9,
    hbm_bandwidth=3.35 * _TERA,
    l2_bytes=50 * 2**20,
    l2_bandwidth=9.7 * _TERA,
    shared_bytes_per_block=227 * 1024,
    shared_bytes_per_sm=228 * 1024,
    registers_per_sm=65536,
    threads_per_sm=2048,
    launch_us=1.2,
    sources=(
        "peaks: NVIDIA H100 whitepaper, SXM5, dense; memory: H100 data sheet",
        _HOPPER_L2,
        _HOPPER_TUNING,
        _LAUNCH_MEASURED,
    ),
)

H200 = Machine(
    name="h200",
    title="H200 SXM 141 GB",
    arch="sm_90a",
    sms=132,
    clock_hz=1.83e9,
    peaks=H100.peaks,
    hbm_bytes=141 * 10**9,
    hbm_bandwidth=4.8 * _TERA,
    l2_bytes=50 * 2**20,
    l2_bandwidth=9.7 * _TERA,
    shared_bytes_per_block=227 * 1024,
    shared_bytes_per_sm=228 * 1024,
    registers_per_sm=65536,
    threads_per_sm=2048,
    launch_us=1.2,
    sources=(
        "peaks, memory: NVIDIA H200 data sheet, SXM, dense",
        _HOPPER_L2,
        _HOPPER_TUNING,
        _LAUNCH_ASSUMED,
    ),
)

B200 = Machine(
    name="b200",
    title="B200 SXM 180 GB",
    arch="sm_100a",
    sms=148,
    clock_hz=1.85e9,
    peaks=MappingProxyType({"fp32": 75 * _TERA, "bf16": 2250 * _TERA, "fp16": 2250 * _TERA, "fp8": 4500 * _TERA}),
    hbm_bytes=180 * 10**9,
    hbm_bandwidth=8.0 * _TERA,
    l2_bytes=126 * 2**20,
    l2_bandwidth=None,
    shared_bytes_per_block=227 * 1024,
    shared_bytes_per_sm=228 * 1024,
    registers_per_sm=65536,
    threads_per_sm=2048,
    launch_us=1.2,
    sources=(
        "peaks, memory: NVIDIA HGX B200 data sheet, one GPU of eight, dense",
        "L2: cudaDeviceProp of a B200",
        "shared memory, registers: CUDA C++ Programming Guide, compute capability 10.0",
        _LAUNCH_ASSUMED,
    ),
)

MACHINES: Mapping[str, Machine] = MappingProxyType({m.name: m for m in (A100, H100, H200, B200)})


def machine(name: str) -> Machine:
    """The machine of that name; raises InputError and lists the known ones otherwise."""
    if name not in MACHINES:
        raise InputError(f"unknown machine {name!r}; known machines: {', '.join(MACHINES)}")
    return MACHINES[name]
