"""How a launch of anyone's kernel is described: arrays, structs, tensor maps, geometry."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes  # noqa: F401  (names such as "bfloat16" are NumPy types from then on)
import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError

Extent = int | tuple[int, ...]


@dataclass(frozen=True, eq=False)
class In:
    """A pointer to a device array that the kernel only reads.

    `value` is a NumPy array of any type (masked elements of a masked array hold nothing yet), or a sequence of
    pointers, structs and tensor maps: an array of those. The same name stands for the same array in every launch.
    """

    name: str
    value: Any

    def __post_init__(self) -> None:
        if isinstance(self.value, str | bytes) or not isinstance(self.value, np.ndarray | Sequence):
            raise InputError(f"array {self.name} is a {type(self.value).__name__}; it is a NumPy array or a sequence")


@dataclass(frozen=True, eq=False)
class InOut(In):
    """The same, of an array that the kernel reads and writes."""


@dataclass(frozen=True, eq=False, init=False)
class Out(In):
    """A pointer to an array of that shape and NumPy type ("float32", "bfloat16" ...) that the kernel only writes."""

    def __init__(self, name: str, shape: Extent, dtype: str) -> None:
        filled = np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, 0xFF, np.uint8).view(dtype).reshape(shape)
        super().__init__(name, np.ma.array(filled, mask=True, shrink=False))


@dataclass(frozen=True, eq=False)
class TensorMap:
    """A CUtensorMap over `array`, which need not be an argument itself; a parameter of 128 bytes, or part of a struct.

    Shape and strides (elements) are those of the array where they are not given; box, shape and strides list the
    outermost dimension first. `swizzle` is 0, 32, 64 or 128 bytes.
    """

    array: In
    box: tuple[int, ...]
    swizzle: int = 0
    shape: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None


class Struct:
    """A struct by value: its fields in order, laid out as C does; a NumPy array among them is an array member."""

    def __init__(self, *fields: Any) -> None:
        self.fields = fields


@dataclass(frozen=True)
class Launch:
    """One launch: `args` in the order of the kernel's parameters.

    grid, block and cluster are extents in x or (x, y, z); `shared` is dynamic shared memory in bytes. `symbols` are
    module variables by their CUDA names: In sets a `__constant__` or `__device__` one, Out reads one back, InOut both.
    `entry` is another kernel than the file's.
    """

    grid: Extent
    block: Extent
    args: Sequence[Any] = ()
    shared: int = 0
    cluster: Extent = 1
    symbols: Sequence[In] = ()
    entry: str = ""

    def extents(self, name: str) -> tuple[int, int, int]:
        """grid, block or cluster as (x, y, z)."""
        value = getattr(self, name)
        found = (value,) if isinstance(value, int | np.integer) else tuple(value)
        if not 1 <= len(found) <= 3 or any(int(e) != e or e < 1 for e in found):
            raise InputError(f"{name} is {value!r}; it is one to three positive integers")
        return (*map(int, found), *(1,) * (3 - len(found)))  # type: ignore[return-value]

    def arrays(self) -> Iterator[In]:
        """Every array that the launch mentions, those inside others first."""
        for argument in (*self.args, *self.symbols):
            yield from _arrays(argument)


def _arrays(value: Any) -> Iterator[In]:
    if isinstance(value, TensorMap):
        yield from _arrays(value.array)
    elif isinstance(value, Struct):
        for part in value.fields:
            yield from _arrays(part)
    elif isinstance(value, In):
        if not isinstance(value.value, np.ndarray):
            for part in value.value:
                yield from _arrays(part)
        yield value


def dense(array: NDArray[Any]) -> NDArray[Any]:
    """The array without its mask, in C order."""
    return np.ascontiguousarray(np.ma.getdata(array)).reshape(array.shape)
