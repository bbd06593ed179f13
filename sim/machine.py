"""What a chip is: sizes, peaks and bandwidths as data, each with its source."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from math import isfinite
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from sim.errors import InputError
from sim.folders import config_path


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
    peaks: Mapping[str, float] = field(hash=False)  # FLOP/s by operand format
    hbm_bytes: int
    hbm_bandwidth: float  # B/s, data sheet
    l2_bytes: int
    l2_bandwidth: float | None  # B/s from L2 to the SMs; None where no figure was found
    shared_bytes_per_block: int  # the most one block can ask for
    shared_bytes_per_sm: int
    registers_per_sm: int  # 32-bit
    threads_per_sm: int
    launch_us: float  # one empty kernel inside a CUDA graph; lab.cards has what a card was measured to take
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
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.name):
            raise InputError(f"a machine's name is of small letters, digits and hyphens; got {self.name!r}")
        if not re.fullmatch(r"sm_\d{2,3}a?", self.arch):
            raise InputError(f'arch is a compile target such as "sm_90a"; got {self.arch!r}')
        if "fp32" not in self.peaks:
            raise InputError("peaks needs fp32, the rate of the CUDA cores")
        for name, value in self._sizes():
            if not (isfinite(value) and value > 0):
                raise InputError(f"{name} must be positive; it is {value}")
        if sum(self.gpcs) != self.sms or list(self.gpcs) != sorted(self.gpcs, reverse=True):
            raise InputError(
                f"gpcs lists the SMs of each GPC, the largest first; {list(self.gpcs)} does not for {self.sms} SMs"
            )

    def _sizes(self) -> Iterator[tuple[str, float]]:
        """(name, number) of every figure but those that are None."""
        for each in fields(self):
            value = getattr(self, each.name)
            numbers = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,)
            yield from ((each.name, number) for number in numbers if isinstance(number, int | float))

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
_LAUNCH_MEASURED = "launch time: an empty kernel inside a CUDA graph on an H100 (lab run ceilings measures it)"
_LAUNCH_OF_H200 = "launch time: an empty kernel inside a CUDA graph on an H200"
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
    launch_us=0.86,
    sources=(
        "peaks, memory: NVIDIA H200 data sheet, SXM, dense",
        "L2: device properties of an H200",
        _HOPPER_L2,
        _HOPPER_PORT,
        _HOPPER_TUNING,
        _HOPPER_SEEN,
        _NVLINK,
        _LAUNCH_OF_H200,
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

_MAX_FILE = 2**16  # bytes
_met: dict[str, Machine] = {}  # from files, and this process's GPU: records and tables name them


def machine(word: str) -> Machine:
    """The machine of that name in any case, or the one that a JSON file at that path describes.

    A name may also be of a file in the user folder `machines`. Raises InputError and lists the known names otherwise.
    """
    if not isinstance(word, str):
        raise InputError(f"a machine is named, such as h100; got {word!r:.40}")
    name = word.lower()
    if name in MACHINES or name in _met:
        return MACHINES.get(name) or _met[name]
    if word.endswith(".json"):
        return meet(machine_in(Path(word)))
    filed = machine_filed(name)
    if filed:
        return filed
    names = [*MACHINES, *sorted(path.stem for path in _folder().glob("*.json"))]
    raise InputError(f"unknown machine {word!r}; known machines: {', '.join(names)}")


def machine_filed(name: str) -> Machine | None:
    """The machine in the file of that name in the user folder `machines`; raises InputError where it has another."""
    path = _folder() / f"{name}.json"
    if not path.is_file():
        return None
    found = machine_in(path)
    if found.name != name:
        raise InputError(f"{path} describes {found.name!r}; name it {name!r}, as its file")
    return meet(found)


def _folder() -> Path:
    return config_path() / "machines"


def machine_in(path: Path) -> Machine:
    """The machine that a JSON file describes, field by field; raises InputError, naming the file, for anything else.

    Lists stand for tuples; fields that have defaults may be left out.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE + 1)  # a device has no end
        if len(text) > _MAX_FILE:
            raise InputError(f"it has more than {_MAX_FILE:,} bytes, too many for a machine")
        given = json.loads(text)
        if not isinstance(given, dict):
            raise InputError("it is no JSON object of a machine's fields")
        found = _from_fields(given)
        if found.name in MACHINES:
            raise InputError(f"{found.name} is the {MACHINES[found.name].title}; choose a name of its own")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return found


def _from_fields(given: Mapping[str, Any]) -> Machine:
    kinds = get_type_hints(Machine)
    required = [field.name for field in fields(Machine) if field.default is MISSING]
    if unknown := [name for name in given if name not in kinds]:
        raise InputError(f"a machine has no {unknown[0]}; it has {', '.join(kinds)}")
    if missing := [name for name in required if name not in given]:
        raise InputError(f"{', '.join(missing)} must be given")
    return Machine(**{name: _converted(name, value, kinds[name]) for name, value in given.items()})


def _converted(name: str, value: Any, kind: Any) -> Any:
    """A value of JSON as the type of a field; raises InputError where it is none."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else _converted(name, value, inner[0])
    if origin is tuple and isinstance(value, list):
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) == len(value):
            return tuple(_converted(name, one, kind) for one, kind in zip(value, kinds, strict=True))
    if origin is Mapping and isinstance(value, dict):
        return MappingProxyType({key: _converted(name, one, inner[1]) for key, one in value.items()})
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (int, str) and type(value) is kind:
        return value
    raise InputError(f"{name} must be {getattr(kind, '__name__', kind)}; got {value!r:.100}")


def meet(found: Machine) -> Machine:
    """Let `machine` know a machine that is none of MACHINES by its name from now on, in this process."""
    _met[found.name] = found
    return found
