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
    gpcs: tuple[int, ...]  # SMs of each GPC, the largest first; a cluster lies in one
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
    # Defaults: the same for compute capabilities 8.0, 9.0 and 10.0 (CUDA C++ Programming Guide, "Technical
    # Specifications per Compute Capability"; shared memory has 32 banks of 4 bytes).
    ctas_per_sm: int = 32  # the most that are resident at once
    max_grid: tuple[int, int, int] = (2**31 - 1, 65535, 65535)  # CTAs along x, y, z
    max_block_threads: int = 1024
    max_cluster: int = 1  # CTAs, the opt-in beyond the portable 8 included; 1 where there are no clusters
    registers_per_thread: int = 255
    static_shared_bytes: int = 48 * 1024  # the most a block can have without asking
    reserved_shared_bytes: int = 1024  # that the system takes for each CTA
    shared_bytes_per_clock: int = 128  # of one SM
    l2_bytes_per_clock_per_sm: int | None = None  # what one SM can take; None where no figure was found
    peer_bandwidth: float | None = None  # B/s in one direction over all links to other GPUs, data sheet

    def __post_init__(self) -> None:
        if sum(self.gpcs) != self.sms or list(self.gpcs) != sorted(self.gpcs, reverse=True):
            raise InputError(
                f"gpcs lists the SMs of each GPC, the largest first; {list(self.gpcs)} does not for {self.sms} SMs"
            )

    def peak(self, format_name: str) -> float:
        """FLOP/s for operands of one format; raises InputError where this chip has no such unit."""
        if format_name not in self.peaks:
            raise InputError(f"{self.title} has no {format_name} unit; it has {', '.join(self.peaks)}")
        return self.peaks[format_name]

    def ridge(self, format_name: str) -> float:
        """FLOP per byte at which both bills take equally long (Williams et al., "Roofline", CACM 2009)."""
        return self.peak(format_name) / self.hbm_bandwidth


def assumed_gpcs(sms: int, most: int = 18) -> tuple[int, ...]:
    """SMs of each GPC where nobody says: as few GPCs of at most `most` SMs as hold all, pairs (TPCs) spread evenly."""
    pairs, gpcs = -(-sms // 2), -(-sms // most)
    spread = [2 * (pairs // gpcs + (i < pairs % gpcs)) for i in range(gpcs)]
    spread[-1] -= sms % 2  # half a TPC
    return tuple(spread)


_TERA = 1e12
_LAUNCH_MEASURED = "launch time: an empty kernel inside a CUDA graph on an H100 (experiments/ceilings.py measures it)"
_LAUNCH_ASSUMED = "launch time: not measured on this chip, the H100's is taken"
_HOPPER_L2 = "L2 bandwidth: RRZE gpu-benches, gpu-l2-cache on an H200 (9.7 TB/s while the data fits)"
_HOPPER_TUNING = "shared memory, registers, clusters: CUDA C++ Programming Guide, compute capability 9.0"
_HOPPER_PORT = "L2 to one SM: 64 B a clock, as on the A100 (its whitepaper); Hopper's does not say otherwise"
_HOPPER_GPCS = (18, 18, 18, 16, 16, 16, 16, 14)
_HOPPER_SEEN = "GPCs: 66 clusters of two, 31 of four and 15 of eight CTAs fit on an H100; other chips differ"
_NVLINK = "links: data sheet, NVLink, half of its rate of both directions"

A100 = Machine(
    name="a100",
    title="A100 SXM 40 GB",
    arch="sm_80",
    sms=108,
    gpcs=(16, 16, 16, 16, 16, 14, 14),
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
        "GPCs: seven, with seven or eight TPCs each, A100 whitepaper",
        "shared memory, registers: CUDA C++ Programming Guide, compute capability 8.0",
        _NVLINK,
        _LAUNCH_ASSUMED,
    ),
    l2_bytes_per_clock_per_sm=64,
    peer_bandwidth=300e9,
)

H100 = Machine(
    name="h100",
    title="H100 SXM 80 GB",
    arch="sm_90a",
    sms=132,
    gpcs=_HOPPER_GPCS,
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
        _HOPPER_PORT,
        _HOPPER_TUNING,
        _HOPPER_SEEN,
        _NVLINK,
        _LAUNCH_MEASURED,
    ),
    max_cluster=16,
    l2_bytes_per_clock_per_sm=64,
    peer_bandwidth=450e9,
)

H200 = Machine(
    name="h200",
    title="H200 SXM 141 GB",
    arch="sm_90a",
    sms=132,
    gpcs=_HOPPER_GPCS,
    clock_hz=1.83e9,
    peaks=H100.peaks,
    hbm_bytes=141 * 10**9,
    hbm_bandwidth=4.8 * _TERA,
    l2_bytes=60 * 2**20,
    l2_bandwidth=9.7 * _TERA,
    shared_bytes_per_block=227 * 1024,
    shared_bytes_per_sm=228 * 1024,
    registers_per_sm=65536,
    threads_per_sm=2048,
    launch_us=1.2,
    sources=(
        "peaks, memory: NVIDIA H200 data sheet, SXM, dense",
        "L2: device properties of an H200",
        _HOPPER_L2,
        _HOPPER_PORT,
        _HOPPER_TUNING,
        _HOPPER_SEEN,
        _NVLINK,
        _LAUNCH_ASSUMED,
    ),
    max_cluster=16,
    l2_bytes_per_clock_per_sm=64,
    peer_bandwidth=450e9,
)

B200 = Machine(
    name="b200",
    title="B200 SXM 180 GB",
    arch="sm_100a",
    sms=148,
    gpcs=assumed_gpcs(148, 20),
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
        "GPCs: assumed, eight of up to 20 SMs (chipsandcheese.com, B200: 80 SMs a die, 74 enabled)",
        "shared memory, registers, clusters: CUDA C++ Programming Guide, compute capability 10.0",
        _NVLINK,
        _LAUNCH_ASSUMED,
    ),
    max_cluster=16,
    peer_bandwidth=900e9,
)

MACHINES: Mapping[str, Machine] = MappingProxyType({m.name: m for m in (A100, H100, H200, B200)})


def machine(name: str) -> Machine:
    """The machine of that name; raises InputError and lists the known ones otherwise."""
    if name not in MACHINES:
        raise InputError(f"unknown machine {name!r}; known machines: {', '.join(MACHINES)}")
    return MACHINES[name]
