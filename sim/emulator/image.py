"""What a launch brings to the emulated chip: global memory, its parameters as bytes, tensor maps, module variables."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.emulator import isa
from sim.emulator.ptx import EmulatorError
from sim.launch import Array, Launch, Role, Scalar, TensorMap

_MAP_FORMATS = {"fp32": isa.F32, "float32": isa.F32, "fp16": isa.F16, "float16": isa.F16, "bf16": isa.BF16,
                "bfloat16": isa.BF16, "float64": isa.F64}  # fmt: skip


@dataclass
class Buffer:
    """An array in global memory: its bytes, which a run updates in place.

    `writable` is false for what the kernel only reads. `unset`, one flag a byte, marks what holds no value yet; a run
    clears what it has set. A `peer` buffer is another GPU's.
    """

    name: str
    data: NDArray[np.uint8]
    writable: bool = True
    unset: NDArray[np.bool_] | None = None
    peer: bool = False


@dataclass(frozen=True)
class Map:
    """A tensor map over buffer number `buffer`; shape, byte strides and box list the outermost dimension first.

    Its 128 bytes lie at `offset` of parameter number `parameter` or of the module variable `variable`, or else at the
    address `offset`.
    """

    name: str
    buffer: int
    element: int
    format: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int
    offset: int = 0
    parameter: int | None = None
    variable: str = ""

    def __post_init__(self) -> None:
        """Refuse what cuTensorMapEncodeTiled refuses (CUDA Driver API, Tensor Map Object Management)."""
        problems = []
        inner = self.box[-1] * self.element
        if not 1 <= len(self.shape) <= 5 or len(self.box) != len(self.shape) or len(self.strides) != len(self.shape):
            problems.append(f"shape {self.shape}, strides {self.strides} and box {self.box}; each has 1 to 5 extents")
        if any(not 1 <= b <= 256 for b in self.box):
            problems.append(f"a box of {self.box}; each extent is 1 to 256")
        if inner % 16:
            problems.append(f"box rows of {inner} B; they are multiples of 16")
        if self.swizzle not in (0, 32, 64, 128):
            problems.append(f"a swizzle of {self.swizzle} B; 0, 32, 64 and 128 are legal")
        if self.swizzle and inner > self.swizzle:
            problems.append(f"box rows of {inner} B with a swizzle of {self.swizzle}")
        if any(s % 16 for s in self.strides[:-1]) or self.strides[-1] != self.element:
            problems.append(f"byte strides {self.strides}; all but the innermost are multiples of 16 B")
        if problems:
            raise EmulatorError(f"tensor map {self.name} has {problems[0]}")

    @property
    def number(self) -> int:
        """The format that a reduction computes in."""
        return _MAP_FORMATS.get(self.format, isa.SIGNED if self.format.startswith("int") else isa.UNSIGNED)


@dataclass(frozen=True)
class Image:
    """One launch as the chip sees it: `parameters` are bytes with the addresses of buffers already in them.

    `variables` holds the bytes of module-level variables by their PTX name: what was set from outside, and after a run
    what all writable ones then hold.
    """

    entry: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    buffers: tuple[Buffer, ...]
    parameters: tuple[NDArray[np.uint8], ...]
    maps: tuple[Map, ...] = ()
    cluster: tuple[int, int, int] = (1, 1, 1)
    shared_bytes: int = 0
    variables: dict[str, NDArray[np.uint8]] = field(default_factory=dict)


def address(buffer: int) -> int:
    """Where buffer number `buffer` lies: so far from the next that no offset reaches it."""
    return (buffer + 1) << isa.ARRAY_SHIFT


def image_of(launch: Launch, arrays: dict[str, NDArray[Any]]) -> Image:
    """The image of a kernel's launch over arrays of storage bits; outputs are unset."""
    buffers: list[Buffer] = []
    parameters: list[NDArray[np.uint8]] = []
    maps: list[Map] = []
    numbers = {a.name: i for i, a in enumerate(launch.arrays)}
    for taken in launch.arrays:
        array = arrays[taken.name]
        if not array.flags.c_contiguous or array.nbytes != taken.nbytes:
            raise EmulatorError(f"array {taken.name} holds {array.nbytes} B; the launch says {taken.nbytes}, dense")
        unset = np.ones(array.nbytes, bool) if taken.role is Role.OUT else None
        data = array.reshape(-1).view(np.uint8)
        buffers.append(Buffer(taken.name, data, taken.role is not Role.IN, unset, taken.peer))
    for argument in launch.arguments:
        if isinstance(argument, TensorMap):
            maps.append(_map(argument, launch, numbers, len(parameters)))
            parameters.append(np.zeros(128, np.uint8))
        elif isinstance(argument, Array):
            parameters.append(np.array([address(numbers[argument.name])], np.uint64).view(np.uint8))
        else:
            assert isinstance(argument, Scalar)
            parameters.append(np.array([argument.value], argument.type).view(np.uint8))
    geometry: dict[str, Any] = {name: getattr(launch, name) for name in ("entry", "grid", "block", "cluster")}
    return Image(
        **geometry,
        buffers=tuple(buffers),
        parameters=tuple(parameters),
        maps=tuple(maps),
        shared_bytes=launch.shared_bytes,
    )


def _map(argument: TensorMap, launch: Launch, numbers: dict[str, int], parameter: int) -> Map:
    array = launch.arrays[numbers[argument.array]]
    element = array.storage.itemsize
    strides = tuple(s * element for s in argument.strides)
    return Map(argument.name, numbers[argument.array], element, array.format, argument.shape, strides, argument.box,
               argument.swizzle, parameter=parameter)  # fmt: skip
