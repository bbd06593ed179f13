"""GGUF: a model's metadata and quantised tensors in one file, read without trusting it.

Layout: the `gguf` specification (ggml, docs/gguf.md), versions 2 and 3, little-endian. Every count, length and offset
is held against the size of the file before it is used, so that a truncated, foreign or hostile file costs one sentence.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lab.inference.mapped import Mapped
from sim import int4
from sim.errors import InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Tensor types that `gguf.quants` turns into floats: plain, legacy 32-weight blocks, 256-weight K blocks.
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
FLOATS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS

# Metadata value types by their number in the file; 8 is a string and 9 an array.
_NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_STRING, _ARRAY = 8, 9
_LENGTH_BYTES = 8  # of the length that precedes each string
_SMALLEST_ENTRY = _LENGTH_BYTES + 4 + 1  # an empty key, a type and one byte of value
_SMALLEST_TENSOR = _LENGTH_BYTES + 4 + 8 + 4 + 8  # an empty name, one dimension, a type and an offset


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: `shape` outermost first as in NumPy, `type` of TYPES, `start` in bytes from the file's."""

    shape: tuple[int, ...]
    type: str
    start: int
    nbytes: int


class GgufFile:
    """An opened and validated GGUF file: `metadata` by key, `tensors` by name.

    Raises InputError where the file is missing, truncated, foreign or inconsistent, or the `gguf` package is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._gguf = _gguf_package()
        try:
            self._mapped = Mapped(path)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise InputError(f"the weights file {path} cannot be read: {error}") from None
        self._data = self._mapped.data
        reader = _Reader(self._data.data, self.refuse)
        entries, tensors = reader.header()
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = reader.string()
            if key in self.metadata:
                self.refuse(f"the metadata key {key!r} occurs twice")
            self.metadata[key] = reader.value()
        self.tensors = self._directory(reader, tensors)

    def refuse(self, reason: str) -> NoReturn:
        """Raise the InputError that names this file."""
        raise InputError(f"{self.path} is not a usable GGUF model: {reason}")

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The metadata value of a key, of Python type `kind`; InputError where it is other or missing."""
        value = self.metadata.get(key, default)
        if value is None:
            self.refuse(f"the metadata key {key!r} is missing")
        if type(value) is not kind:
            self.refuse(f"the metadata key {key!r} holds {type(value).__name__}, not {kind.__name__}")
        return value

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer of the metadata from low to high."""
        value: int = self.get(key, int, default)
        if not low <= value <= high:
            self.refuse(f"{key} must be from {low} to {high}; it is {value}")
        return value

    def rows(self, name: str, rows: slice | Sequence[int] = slice(None)) -> NDArray[np.floating]:
        """Rows of a tensor: as they are where they are floats, over the file's memory, else dequantised to float32."""
        tensor, raw = self.tensors[name], self._raw(name)
        if tensor.type in FLOATS:
            floats: NDArray[np.floating] = raw.view(FLOATS[tensor.type]).reshape(tensor.shape)[rows]
            return floats
        kind = self._gguf.GGMLQuantizationType[tensor.type]
        blocks = raw.reshape(*tensor.shape[:-1], -1)
        vector = blocks.ndim == 1  # whose blocks hold more than one of its elements
        with np.errstate(over="ignore", invalid="ignore"):  # of scales that are not finite
            values: NDArray[np.float32] = self._gguf.quants.dequantize(
                np.ascontiguousarray(blocks if vector else blocks[rows]), kind
            )
        return values[rows] if vector else values

    def groups(self, name: str, rows: slice = slice(None), onto: Callable = np.asarray) -> int4.Groups | None:
        """Rows of a matrix as int4 groups: its own of type Q4_0 or Q4_1, those of `from_gguf_k` of Q4_K; else None.

        They are of the arrays that `onto` makes of the file's bytes, which may lie on a GPU.
        """
        tensor = self.tensors[name]
        nbytes = int4.GGUF_K_BYTES if tensor.type == "Q4_K" else int4.GGUF_BYTES.get(tensor.type)
        if len(tensor.shape) != 2 or nbytes is None:
            return None
        blocks = onto(self._raw(name).reshape(tensor.shape[0], -1, nbytes)[rows])
        return int4.from_gguf_k(blocks) if tensor.type == "Q4_K" else int4.from_gguf(blocks, tensor.type)

    def read_bf16(self, name: str, rows: slice, to: NDArray[np.uint16]) -> bool:
        """Fill dense memory with rows of a tensor that is stored in bf16; False where it is stored otherwise."""
        tensor = self.tensors[name]
        if tensor.type != "BF16":
            return False
        first, _, _ = rows.indices(tensor.shape[0])
        try:
            self._mapped.read(tensor.start + first * to.itemsize * prod(tensor.shape[1:]), to)
        except OSError as error:
            self.refuse(f"the tensor {name!r:.100} cannot be read: {error}")
        return True

    def leave(self, name: str, rows: slice) -> None:
        """Give back the memory of rows that were read."""
        tensor = self.tensors[name]
        first, last, _ = rows.indices(tensor.shape[0])
        row = tensor.nbytes // tensor.shape[0] if len(tensor.shape) > 1 else 0
        self._mapped.leave(tensor.start + first * row, tensor.start + (last * row or tensor.nbytes))

    def _raw(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes."""
        tensor = self.tensors[name]
        return self._data[tensor.start : tensor.start + tensor.nbytes]

    def _directory(self, reader: "_Reader", count: int) -> dict[str, Tensor]:
        placed: dict[str, tuple[tuple[int, ...], str, int, int]] = {}
        for _ in range(count):
            name = reader.string()
            if name in placed:
                self.refuse(f"the tensor {name!r} occurs twice")
            dimensions = reader.number("<u4")
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                self.refuse(f"the tensor {name!r} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are legal")
            shape = tuple(reader.number("<u8") for _ in range(dimensions))[::-1]
            type_name, nbytes = self._size(name, shape, reader.number("<u4"))
            placed[name] = (shape, type_name, reader.number("<u8"), nbytes)
        alignment = self.integer("general.alignment", 8, 2**20, default=32)
        data = -(-reader.at // alignment) * alignment
        for name, (_, _, offset, nbytes) in placed.items():
            if offset % alignment or data + offset + nbytes > len(self._data):
                self.refuse(
                    f"the tensor {name!r} takes {nbytes:,} B at offset {offset:,} (aligned to {alignment}); "
                    f"the file has {max(len(self._data) - data, 0):,} B of tensors"
                )
        return {name: Tensor(shape, kind, data + at, size) for name, (shape, kind, at, size) in placed.items()}

    def _size(self, name: str, shape: tuple[int, ...], number: int) -> tuple[str, int]:
        known = {self._gguf.GGMLQuantizationType[t].value: t for t in TYPES}
        if number not in known:
            self.refuse(f"the tensor {name!r} has quantisation type {number}; supported: {', '.join(TYPES)}")
        block, block_bytes = self._gguf.GGML_QUANT_SIZES[self._gguf.GGMLQuantizationType(number)]
        if min(shape) < 1 or shape[-1] % block:
            self.refuse(f"the tensor {name!r} of {known[number]} has shape {shape}; rows are whole blocks of {block}")
        return known[number], prod(shape) // block * block_bytes


@dataclass
class _Reader:
    """A cursor that refuses to run past the end."""

    data: memoryview
    refuse: Callable[[str], NoReturn]
    at: int = 0

    def header(self) -> tuple[int, int]:
        """(metadata entries, tensors)."""
        if self.take(len(MAGIC)) != MAGIC:
            self.refuse("it does not begin with the bytes GGUF")
        version = self.number("<u4")
        if version not in VERSIONS:
            self.refuse(f"it has version {version}; versions {' and '.join(map(str, VERSIONS))} little-endian are read")
        tensors, entries = self.number("<u8"), self.number("<u8")
        if tensors * _SMALLEST_TENSOR + entries * _SMALLEST_ENTRY > self.left:
            self.refuse(f"it announces {entries} metadata entries and {tensors} tensors, more than fit in the file")
        return entries, tensors

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, nbytes: int) -> bytes:
        if nbytes > self.left:
            self.refuse(f"it is truncated: {nbytes:,} B are announced at byte {self.at:,} and {self.left:,} are left")
        self.at += nbytes
        return bytes(self.data[self.at - nbytes : self.at])

    def number(self, code: str) -> Any:
        return np.frombuffer(self.take(np.dtype(code).itemsize), code)[0].item()

    def string(self) -> str:
        (length,) = struct.unpack("<Q", self.take(_LENGTH_BYTES))
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            self.refuse(f"the text before byte {self.at:,} is not UTF-8")

    def value(self) -> Any:
        """One metadata value: bool, int, float, str, list[str] or a NumPy array."""
        kind = self.number("<u4")
        if kind == _ARRAY:
            return self.array()
        if kind == _STRING:
            return self.string()
        return self.number(self.code(kind))

    def array(self) -> list[str] | NDArray:
        kind, length = self.number("<u4"), self.number("<u8")
        if kind == _STRING:
            if length * _LENGTH_BYTES > self.left:
                self.refuse(f"an array announces {length:,} texts at byte {self.at:,}, more than fit in the file")
            return [self.string() for _ in range(length)]
        code = self.code(kind)
        return np.frombuffer(self.take(length * np.dtype(code).itemsize), code)

    def code(self, kind: int) -> str:
        if kind not in _NUMBERS:
            self.refuse(f"a metadata value before byte {self.at:,} has type {kind}, which is unknown or a nested array")
        return _NUMBERS[kind]


@cache
def _gguf_package() -> Any:
    try:
        import gguf  # an extra: only reading weights needs it
        import gguf.quants
    except ImportError:
        raise InputError("reading weights needs the package gguf: pip install 'kernel-lab[model]'") from None
    return gguf
