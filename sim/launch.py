"""Launch: one kernel launch as pure data, which every executor takes."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Any

import numpy as np

from sim.formats import storage_of


class Role(StrEnum):
    """What a launch does with an array argument.

    A workspace is zeroed once; what of it has to be zero at the next launch, the kernel leaves so.
    """

    IN = "in"
    OUT = "out"
    INOUT = "inout"
    WORKSPACE = "workspace"


@dataclass(frozen=True)
class Array:
    """A device pointer parameter to an array, dense and row-major where it has no strides (in elements).

    `storage` is the NumPy type that carries its bits. The values of one that `indexes` say how much of the others is
    meant. A `peer` array lies in the memory of another GPU, or may.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    format: str  # a format of sim.formats, or a NumPy type name such as "int32"
    strides: tuple[int, ...] | None = None
    indexes: bool = False
    peer: bool = False

    @property
    def storage(self) -> np.dtype:
        return storage_of(self.format)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.storage.itemsize


@dataclass(frozen=True)
class Scalar:
    """A by-value parameter; `type` is a NumPy type name of the C parameter: int32, int64, float32."""

    name: str
    value: int | float
    type: str = "int32"


@dataclass(frozen=True)
class TensorMap:
    """A 128-byte `const __grid_constant__` tensor map parameter over the array argument called `array`.

    Shape, strides (elements) and box list the outermost dimension first, as NumPy does; the hardware's order is the
    reverse. `swizzle` is 0, 32, 64 or 128 bytes. Out-of-bounds elements read as zero and are not written.
    """

    name: str
    array: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int = 0

    def box_bytes(self, itemsize: int) -> int:
        return prod(self.box) * itemsize


Argument = Array | Scalar | TensorMap


@dataclass(frozen=True)
class Launch:
    """Everything an executor needs: which entry of which kernel, its geometry, its ordered parameters.

    `grid`, `block` and `cluster` are (x, y, z); `grid` counts CTAs. `shared_bytes` is dynamic shared memory.
    `dependent` asks for programmatic stream serialization (the kernel then executes griddepcontrol.wait); `cooperative`
    for all CTAs to be resident at once, so that they may wait for each other.
    """

    kernel: str  # file stem
    entry: str  # extern "C" name
    problem: Any  # frozen dataclasses of the kernel's own; sim only carries them
    schedule: Any
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[Argument, ...]
    cluster: tuple[int, int, int] = (1, 1, 1)
    shared_bytes: int = 0
    dependent: bool = False
    cooperative: bool = False

    @property
    def arrays(self) -> tuple[Array, ...]:
        return tuple(a for a in self.arguments if isinstance(a, Array))

    @property
    def ctas(self) -> int:
        return prod(self.grid)

    @property
    def threads(self) -> int:
        return prod(self.block)


def overlap(launches: Iterable[Launch]) -> bool:
    """Whether any of the launches may start before what is enqueued ahead of it has ended."""
    return any(launch.dependent for launch in launches)
