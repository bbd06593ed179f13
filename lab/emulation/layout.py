"""A described launch as the emulated chip takes it: buffers, and parameters as bytes with addresses in them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.emulation.description import In, InOut, Launch, Out, Struct, TensorMap, dense
from sim.emulator import Buffer, Image, Map
from sim.emulator.image import address
from sim.errors import InputError

_MAP_BYTES, _MAP_ALIGN = 128, 64  # of a CUtensorMap (cuda.h)


@dataclass
class _Bytes:
    """A value as bytes, its alignment, and the tensor maps in it by offset."""

    data: bytearray
    align: int
    maps: list[Map]


class Memory:
    """The arrays of one run, which all its launches share, by name."""

    def __init__(self, launches: Sequence[Launch]) -> None:
        self.arrays: dict[str, In] = {}
        for array in (a for launch in launches for a in launch.arrays()):
            known = self.arrays.setdefault(array.name, array)
            if known.value is not array.value and not _alike(known, array):
                raise InputError(f"two arrays are called {array.name} and differ; one name is one array")
        symbols = {s.name for launch in launches for s in launch.symbols}
        self.buffers: dict[str, Buffer] = {}
        self.numbers = {name: i for i, name in enumerate(name for name in self.arrays if name not in symbols)}
        self._maps: list[Map] = []
        written = {a.name for launch in launches for a in launch.arrays() if isinstance(a, InOut | Out)}
        for name in self.numbers:
            self.buffers[name] = self._buffer(self.arrays[name], name in written)
        self.variables: dict[str, NDArray[np.uint8]] = {}

    def image(self, launch: Launch, entry: str, sizes: Sequence[int], names: dict[str, str]) -> Image:
        """The image of a launch of the PTX entry, whose parameters have those sizes in bytes.

        `names` are the PTX names of symbols. Raises InputError for what does not fit its parameter.
        """
        if len(sizes) != len(launch.args):
            raise InputError(f"{entry} takes {len(sizes)} parameters; the launch has {len(launch.args)} args")
        parameters, maps = [], list(self._maps)
        for i, (value, size) in enumerate(zip(launch.args, sizes, strict=True)):
            found = self._bytes(value, f"argument {i + 1} of {entry}", size)
            parameters.append(np.asarray(found.data, np.uint8))
            maps += [replace(one, parameter=i) for one in found.maps]
        for symbol in launch.symbols:
            name = names[symbol.name]
            if not isinstance(symbol, Out):
                found = self._elements(symbol)
                self.variables.setdefault(name, np.asarray(found.data, np.uint8))
                maps += [replace(one, variable=name) for one in found.maps]
        return Image(
            entry=entry,
            grid=launch.extents("grid"),
            block=launch.extents("block"),
            cluster=launch.extents("cluster"),
            shared_bytes=launch.shared,
            buffers=tuple(self.buffers.values()),
            parameters=tuple(parameters),
            maps=tuple(maps),
            variables=self.variables,
        )

    def initial(self) -> dict[str, NDArray]:
        """The values that plain arrays begin with, by name."""
        return {n: dense(a.value).copy() for n, a in self.arrays.items() if isinstance(a.value, np.ndarray)}

    def outputs(self, names: dict[str, str]) -> dict[str, NDArray]:
        """The values of every array and symbol that a launch may have written."""
        found = {}
        for name, array in self.arrays.items():
            if not isinstance(array.value, np.ndarray):
                continue
            if name in self.buffers:
                data, written = self.buffers[name].data, self.buffers[name].writable
            else:
                data, written = self.variables.get(names[name], np.zeros(0, np.uint8)), isinstance(array, InOut | Out)
            if written and data.size >= array.value.nbytes:
                bits = data[: array.value.nbytes].copy()
                found[name] = bits.view(array.value.dtype).reshape(array.value.shape)
        return found

    def _buffer(self, array: In, written: bool) -> Buffer:
        found = self._elements(array)
        unset = None
        if np.ma.isMaskedArray(array.value):
            unset = np.repeat(np.ma.getmaskarray(array.value).reshape(-1), array.value.itemsize)
        number = self.numbers[array.name]
        self._maps += [replace(one, offset=address(number) + one.offset) for one in found.maps]
        return Buffer(array.name, np.asarray(found.data, np.uint8), written, unset)

    def _elements(self, array: In) -> _Bytes:
        """The content of an array: of numbers, or of pointers, structs and maps."""
        if isinstance(array.value, np.ndarray):
            return _Bytes(bytearray(dense(array.value).tobytes()), array.value.itemsize, [])
        return _packed(array.value, lambda value: self._bytes(value, f"an element of {array.name}", 0))

    def _bytes(self, value: Any, what: str, size: int) -> _Bytes:
        """A value passed by value; `size` is what its parameter takes, 0 where that is not known."""
        if isinstance(value, In):
            if value.name not in self.numbers:
                raise InputError(f"{what} is the symbol {value.name}; a symbol is no argument")
            found = _Bytes(bytearray(address(self.numbers[value.name]).to_bytes(8, "little")), 8, [])
        elif isinstance(value, TensorMap):
            found = _Bytes(bytearray(_MAP_BYTES), _MAP_ALIGN, [self._map(value)])
        elif isinstance(value, Struct):
            found = _packed(value.fields, lambda part: self._bytes(part, f"a field of {what}", 0))
        elif value is None:
            found = _Bytes(bytearray(8), 8, [])
        elif isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            found = _Bytes(bytearray(array.tobytes()), array.dtype.alignment, [])
        elif isinstance(value, bool | int | float):
            found = _number(value, size, what)
        else:
            raise InputError(f"{what} is a {type(value).__name__}; pass a NumPy scalar, lab.In, lab.Struct ...")
        if size and len(found.data) != size:
            raise InputError(f"{what} has {len(found.data)} B; its parameter has {size}")
        return found

    def _map(self, described: TensorMap) -> Map:
        array = described.array.value
        if not isinstance(array, np.ndarray):
            raise InputError(f"a tensor map over {described.array.name}, which is no array of numbers")
        shape = described.shape or array.shape
        strides = described.strides or tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
        item = array.itemsize
        return Map(f"over {described.array.name}", self.numbers[described.array.name], item, array.dtype.name,
                   tuple(shape), tuple(s * item for s in strides), tuple(described.box), described.swizzle)  # fmt: skip


def _packed(values: Iterable[Any], convert: Callable[[Any], _Bytes]) -> _Bytes:
    """Values one after the other, each at its alignment, the whole a multiple of the largest: a C struct."""
    whole = _Bytes(bytearray(), 1, [])
    for part in map(convert, values):
        whole.data.extend(bytes(-len(whole.data) % part.align))
        whole.maps += [replace(one, offset=len(whole.data) + one.offset) for one in part.maps]
        whole.data.extend(part.data)
        whole.align = max(whole.align, part.align)
    whole.data.extend(bytes(-len(whole.data) % whole.align))
    return whole


def _number(value: float, size: int, what: str) -> _Bytes:
    """A Python number takes the size of its parameter."""
    kinds = {1: "int8", 2: "int16", 4: "int32", 8: "int64"} if isinstance(value, int) else {4: "float32", 8: "float64"}
    if size not in kinds:
        said = f"parameter has {size} B" if size else "size is not known there"
        raise InputError(f"{what} is the Python number {value!r}, and its {said}; pass a NumPy scalar")
    if isinstance(value, int) and not -(1 << 8 * size - 1) <= value < 1 << 8 * size:
        raise InputError(f"{what} is {value}, which does not fit {size} B")
    data = value.to_bytes(size, "little", signed=value < 0) if isinstance(value, int) else np.array(value, kinds[size])
    return _Bytes(bytearray(data if isinstance(data, bytes) else data.tobytes()), size, [])


def _alike(a: In, b: In) -> bool:
    """Whether two descriptions of an array say the same of its shape, type and values."""
    x, y = a.value, b.value
    if not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray):
        return False
    return x.dtype == y.dtype and x.shape == y.shape and dense(x).tobytes() == dense(y).tobytes()
