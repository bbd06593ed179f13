"""Kernel parameters in memory: packed once, pointers patched in place, tensor maps encoded by the driver."""

import ctypes
from collections.abc import Mapping
from ctypes import c_uint64, c_void_p
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from lab.gpu import driver
from sim.errors import InputError
from sim.launch import Array, Launch, Scalar, TensorMap

ALIGNMENT = 16  # bytes: what vector loads and TMA ask of a global address (PTX ISA, "Tensor memory access")
MAP_BYTES, MAP_ALIGNMENT = 128, 64  # CUtensorMap

# CU_TENSOR_MAP_DATA_TYPE_ by format or NumPy type name; packed formats travel as bytes.
_ELEMENT = {
    "uint16": "UINT16",
    "uint32": "UINT32",
    "int32": "INT32",
    "int64": "INT64",
    "fp16": "FLOAT16",
    "fp32": "FLOAT32",
    "float32": "FLOAT32",
    "bf16": "BFLOAT16",
}
_BYTES = "UINT8"
_SWIZZLE = {0: "NONE", 32: "32B", 64: "64B", 128: "128B"}  # CU_TENSOR_MAP_SWIZZLE_ by its bytes
_LINE = 128  # bytes of L2


class DeviceArray(Protocol):
    """What CuPy, PyTorch, Numba and JAX arrays on a GPU have in common."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class TiledMap:
    """The arguments of cuTensorMapEncodeTiled: innermost dimension first, strides in bytes without the innermost."""

    element: str  # the end of a CUtensorMapDataType's name
    dimensions: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: str  # the end of a CUtensorMapSwizzle's name


def tiled_map(tensor_map: TensorMap, array: Array) -> TiledMap:
    """A tensor map in the hardware's terms."""
    itemsize = array.storage.itemsize
    if tensor_map.strides[-1] != 1:
        raise ValueError(f"tensor map {tensor_map.name}: the innermost stride must be 1, not {tensor_map.strides[-1]}")
    return TiledMap(
        element=_ELEMENT.get(array.format, _BYTES),
        dimensions=tensor_map.shape[::-1],
        strides=tuple(stride * itemsize for stride in tensor_map.strides[-2::-1]),
        box=tensor_map.box[::-1],
        swizzle=_SWIZZLE[tensor_map.swizzle],
    )


class EncodedMap:
    """The 128 bytes of a tensor map, which lie at `address`, 64-byte aligned; blank until `point` names an array."""

    def __init__(self, tiled: TiledMap, address: int) -> None:
        cuda = driver.api()
        # Whole lines: to ask for pairs of them makes a stream from HBM slower. Rows that start anywhere in a line:
        # fetching more than was asked for made a GEMM of such rows 10% slower.
        promotion = "NONE" if any(stride % _LINE for stride in tiled.strides) else "L2_128B"
        self._element = getattr(cuda.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{tiled.element}")
        self._rank = len(tiled.dimensions)
        self._layout = (
            [cuda.cuuint64_t(extent) for extent in tiled.dimensions],
            [cuda.cuuint64_t(stride) for stride in tiled.strides],
            [cuda.cuuint32_t(extent) for extent in tiled.box],
            [cuda.cuuint32_t(1)] * self._rank,
            cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            getattr(cuda.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{tiled.swizzle}"),
            getattr(cuda.CUtensorMapL2promotion, f"CU_TENSOR_MAP_L2_PROMOTION_{promotion}"),
            cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        self._address = address
        self._in_place = cuda.CUtensorMap(_ptr=address)
        self._encoded = False

    def point(self, pointer: int) -> None:
        """Let the array lie at `pointer`. Only the first time is the whole map encoded, which costs the host more."""
        if self._encoded:
            driver.call("cuTensorMapReplaceAddress", self._in_place, pointer)
            return
        encoded = driver.call("cuTensorMapEncodeTiled", self._element, self._rank, pointer, *self._layout)
        ctypes.memmove(self._address, encoded.getPtr(), MAP_BYTES)
        self._encoded = True


class Parameters:
    """The parameters of one launch; `address` is the void** that the driver takes.

    Array pointers are null, and tensor maps blank, until `point` names where the arrays are.
    """

    def __init__(self, launch: Launch) -> None:
        arrays = {a.name: a for a in launch.arrays}
        sizes = [_size_and_alignment(a) for a in launch.arguments]
        offsets, end = [], 0
        for size, alignment in sizes:
            offset = -(-end // alignment) * alignment
            offsets.append(offset)
            end = offset + size
        self._memory = ctypes.create_string_buffer(end + MAP_ALIGNMENT)
        base = -(-ctypes.addressof(self._memory) // MAP_ALIGNMENT) * MAP_ALIGNMENT
        self._table = (c_void_p * max(1, len(offsets)))(*[base + offset for offset in offsets])
        self.address = ctypes.addressof(self._table)
        self._pointers: dict[str, list[c_uint64]] = {}
        self._maps: dict[str, list[EncodedMap]] = {}
        for argument, offset in zip(launch.arguments, offsets, strict=True):
            at = base + offset
            if isinstance(argument, Array):
                self._pointers.setdefault(argument.name, []).append(c_uint64.from_address(at))
            elif isinstance(argument, TensorMap):
                if argument.array not in arrays:
                    raise ValueError(f"tensor map {argument.name} is over {argument.array}, which is no argument")
                tiled = tiled_map(argument, arrays[argument.array])
                self._maps.setdefault(argument.array, []).append(EncodedMap(tiled, at))
            else:
                value = np.dtype(argument.type).type(argument.value).tobytes()
                ctypes.memmove(at, value, len(value))

    def point(self, name: str, pointer: int) -> None:
        """Let the array argument called `name` lie at `pointer`."""
        for slot in self._pointers.get(name, ()):
            slot.value = pointer
        for encoded in self._maps.get(name, ()):
            encoded.point(pointer)


def pointer_of(array: DeviceArray, described: Array) -> int:
    """The address of a device array; raises InputError where it is not the dense, aligned array described."""
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        raise InputError(f"{described.name} must be an array on a GPU; it is {type(array).__qualname__}")
    pointer = int(interface["data"][0])
    shape, itemsize = tuple(interface["shape"]), int(interface["typestr"][2:])
    nbytes = prod(shape) * itemsize
    if nbytes != described.nbytes:
        raise InputError(f"{described.name} must hold {described.nbytes:,} B; it holds {nbytes:,} B")
    strides = interface.get("strides")
    if strides is not None and tuple(strides) != dense_strides(shape, itemsize):
        raise InputError(f"{described.name} must be dense and row-major; its strides are {tuple(strides)} B")
    if pointer % ALIGNMENT:
        raise InputError(f"{described.name} must start at a multiple of {ALIGNMENT} B; it starts at {pointer:#x}")
    return pointer


def device_of(pointer: int) -> int:
    """The number of the GPU whose memory this is."""
    ordinal = driver.api().CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return int(driver.call("cuPointerGetAttribute", ordinal, pointer))


def require_on(device: int, pointer: int, name: str) -> None:
    """Raise InputError where an array's memory is not that of the GPU with this number."""
    found = device_of(pointer)
    if found != device:
        raise InputError(f"{name} is on GPU {found}; it must be on GPU {device}")


def dense_strides(shape: tuple[int, ...], itemsize: int = 1) -> tuple[int, ...]:
    """Row-major strides, in units of `itemsize`."""
    strides = [itemsize]
    for extent in shape[:0:-1]:
        strides.append(strides[-1] * extent)
    return tuple(strides[::-1][-len(shape) :]) if shape else ()


def pointers_of(arrays: Mapping[str, DeviceArray], launches: tuple[Launch, ...]) -> dict[str, int]:
    """Checked addresses of every array argument of the launches."""
    described = {a.name: a for launch in launches for a in launch.arrays}
    missing = sorted(described.keys() - arrays.keys())
    if missing:
        raise InputError(f"no array was given for {', '.join(missing)}")
    return {name: pointer_of(arrays[name], array) for name, array in described.items()}


def _size_and_alignment(argument: Array | Scalar | TensorMap) -> tuple[int, int]:
    if isinstance(argument, TensorMap):
        return MAP_BYTES, MAP_ALIGNMENT
    size = np.dtype(argument.type).itemsize if isinstance(argument, Scalar) else 8
    return size, size
